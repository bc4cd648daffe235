"""The figures of all tensors, from one pass over the values."""
