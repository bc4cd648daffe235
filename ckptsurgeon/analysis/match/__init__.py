"""Proposes which tensors of two models correspond; reads only headers, and changes no file."""
