"""Detectors that learn to tell normal images from anomalies, simulated or labelled."""
