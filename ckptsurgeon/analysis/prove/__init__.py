"""Compares what two networks compute; does not change any file."""
