"""Checks of files: sizes, offsets, checksums, and the index against the shards."""
