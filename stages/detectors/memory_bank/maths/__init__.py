"""What the detectors of this family share: choosing a coreset, finding neighbours in it."""
