"""Detectors that keep normal embeddings and measure the distance to the nearest."""
