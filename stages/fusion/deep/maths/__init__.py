"""What the deep detectors are made of: tokens, fusion, heads, learning."""
