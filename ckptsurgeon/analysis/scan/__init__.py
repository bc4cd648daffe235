"""Finds what reading a file would import and call, by decoding the file without running it."""
