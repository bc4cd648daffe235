"""Reads and writes the formats on disk, one module each: recognise it, read its header, lay out a file."""
