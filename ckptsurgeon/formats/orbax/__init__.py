"""Reads the parts of an Orbax checkpoint: its folders, its lists of arrays, and the chunks of arrays."""
