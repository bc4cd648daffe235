"""Ranges of files at addresses, over connections that may fail."""
