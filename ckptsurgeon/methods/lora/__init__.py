"""Low-rank adapters: their names in files, the tensors that they change, and the changes. Opens no file."""
