"""Decodes pickles, instruction by instruction, without executing them."""
