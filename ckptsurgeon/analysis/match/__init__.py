"""Proposes which tensors of two models correspond, from headers only. Renames nothing."""
