"""Finds what reading a file would import and call, by decoding it, without running it."""
