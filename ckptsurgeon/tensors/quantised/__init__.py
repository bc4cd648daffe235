"""Quantised weights, which are stored as several tensors, and their settings in a ``quantization_config``."""
