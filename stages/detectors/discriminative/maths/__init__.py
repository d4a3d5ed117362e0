"""Losses that several discriminative detectors share."""
