"""Formats on disk, one file each: how to know one, read its header, lay one out for writing."""
