"""Reads and writes checkpoint formats; the module of a format recognises its files, reads headers, lays out outputs."""
