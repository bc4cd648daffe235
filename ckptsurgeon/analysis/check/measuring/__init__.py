"""The figures of all tensors (counts, extremes, moments), from one pass over the values."""
