"""Detectors that learn to draw normal images, and look at what they cannot draw."""
