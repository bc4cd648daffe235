"""Decodes the codes of quantised tensors: one module for each family of encodings. The modules need numpy."""
