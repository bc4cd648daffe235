"""Formats of lists of clips, one file each, as ``MANIFEST``."""
