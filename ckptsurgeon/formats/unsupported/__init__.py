"""Recognises files and folders that this package cannot read, so that error messages can name their kind."""
