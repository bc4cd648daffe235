"""Computes on the values of one tensor, block by block: boxes, casts, means. It uses numpy and opens no file."""
