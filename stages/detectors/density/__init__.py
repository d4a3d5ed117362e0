"""Detectors that fit a distribution to normal embeddings."""
