"""The parts of the masked autoencoder for signals: its masks, its network, its losses, its scores."""
