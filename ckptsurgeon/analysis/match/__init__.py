"""Proposes which tensors of two models correspond, from their headers; does not change any file."""
