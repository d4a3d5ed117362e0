"""What the detectors of this family share: coupling layers, and thresholds from the Gaussian that a flow must give."""
