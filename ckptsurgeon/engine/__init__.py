"""Applies plans: copies the bytes of unchanged tensors, computes all other tensors, publishes the output atomically."""
