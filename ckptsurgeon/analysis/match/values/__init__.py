"""Finds by content which tensors of two checkpoints of one network correspond, and in what other form."""
