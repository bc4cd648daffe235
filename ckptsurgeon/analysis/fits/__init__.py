"""Whether a checkpoint loads into a destination."""
