"""Quantised weights, which are stored as several tensors, and what a ``quantization_config`` says of them."""
