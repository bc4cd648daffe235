"""Finds out whether a checkpoint loads into a destination, by keys and shapes."""
