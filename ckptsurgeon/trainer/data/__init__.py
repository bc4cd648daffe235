"""Clips, their features and labels, and batches of them."""
