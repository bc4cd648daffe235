"""Clips, features, batches."""
