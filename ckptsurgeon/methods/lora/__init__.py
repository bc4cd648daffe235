"""Low-rank adapters: the names of their tensors, the weights that they change, and the changes. Opens no file."""
