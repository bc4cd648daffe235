"""Chooses the matrices of a model to quantise, and writes the matching ``quantization_config``."""
