"""Low-rank adapters: how files spell them, which tensors they are for, and what they do to values. Opens nothing."""
