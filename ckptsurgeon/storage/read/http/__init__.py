"""Reads ranges of files at web addresses, over connections that may fail."""
