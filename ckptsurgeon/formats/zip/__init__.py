"""Reads zip archives, local or remote."""
