"""Computes on the values of one tensor, block by block: slices, casts, means. It uses numpy and opens no file."""
