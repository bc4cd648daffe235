"""Finds the imports and calls that reading a file would cause, by decoding the file without running it."""
