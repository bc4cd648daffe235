"""Recognises files and folders of other kinds than the checkpoints that this package reads, for its error messages."""
