"""The parts of the Perceiver with a mixture of experts: tokens, trunk, experts, heads, and what it learns by."""
