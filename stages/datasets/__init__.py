"""Image data sets: adapters that read foreign layouts, and the only code that opens image files."""
