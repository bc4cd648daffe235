"""Pickles of tensors, decoded without running anything."""
