"""The two-stage search over the masked autoencoder: its grids, one combination fitted and judged, the choice between stages, what mattered."""
