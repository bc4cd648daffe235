"""Compares the outputs of two networks; does not change any file."""
