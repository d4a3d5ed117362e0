"""What the detectors of this family share: Gaussians from streamed moments, principal axes."""
