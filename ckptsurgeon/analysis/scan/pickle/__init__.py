"""Decodes pickles, instruction by instruction, without running them."""
