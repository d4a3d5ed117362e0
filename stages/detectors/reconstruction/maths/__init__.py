"""What the detectors of this family share: networks, structural similarity, padding, simulated anomalies."""
