"""Describes tensors without reading their bytes: dtype, shape, and position in a file."""
