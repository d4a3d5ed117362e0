"""What the detectors of this family share: optimisers, attention, networks that decode what a teacher encodes."""
