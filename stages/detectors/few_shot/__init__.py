"""Detectors that are ready after a handful of normal images: `shots` of a model's entry in params.yaml says how many."""
