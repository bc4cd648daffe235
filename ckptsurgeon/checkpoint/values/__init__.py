"""Makes notes that need the values of some tensors: a limited number of bytes is read, from local files only."""
