"""Recognises files and folders that this package cannot read, to make its error messages precise."""
