"""Constructs a module without storage: records the constructor's operations, and later runs some of them."""
