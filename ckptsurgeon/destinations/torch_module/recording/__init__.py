"""Constructs a module without memory for values: records the constructor's operations, and later runs some of them."""
