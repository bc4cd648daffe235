"""Notes that need the values of some tensors: a bounded number of bytes is read from local files."""
