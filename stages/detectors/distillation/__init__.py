"""Detectors whose student learns to imitate a teacher on normal images."""
