"""Applies plans: copies bytes between files, computes the other tensors, and publishes the output atomically."""
