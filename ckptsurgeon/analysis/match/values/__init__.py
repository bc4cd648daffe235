"""Finds by content which tensors of two checkpoints of one network correspond, and which operations convert them."""
