"""Decodes the codes of quantised tensors: one module for each family of encodings, which needs numpy."""
