"""Decodes pickles of tensors without running anything."""
