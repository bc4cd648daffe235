"""Tensors whose bytes are copied."""
