"""What the detectors of this family share: optimisers and blocks of networks."""
