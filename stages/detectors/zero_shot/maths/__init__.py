"""What the detectors of this family share: the sentences about good and bad objects."""
