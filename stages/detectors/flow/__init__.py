"""Detectors that map features by an invertible network onto a Gaussian, where the likelihood of each is known."""
