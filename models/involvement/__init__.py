"""2DS, the binary 2D lesion model that measures lung involvement."""
