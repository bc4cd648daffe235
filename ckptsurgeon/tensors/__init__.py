"""Describes tensors without reading their bytes: dtype, shape, and place in a file."""
