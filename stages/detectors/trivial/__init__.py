"""What any detector must beat: rules of a few lines that look at pixels only."""
