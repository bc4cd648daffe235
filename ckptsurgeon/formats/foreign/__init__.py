"""Recognises files that cannot be read, and advises what to do with them."""
