"""Detectors that need no image of the objects they judge: `shots: 0` in params.yaml; some take a few all the same."""
