"""Applies plans: copies bytes between files, computes the other tensors, and puts the output in place atomically."""
