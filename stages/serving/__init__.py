"""Where people meet Assay: the command line, the leaderboard, and the pipeline that scores one image."""
