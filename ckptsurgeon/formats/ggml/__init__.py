"""Reads the header of GGUF files, defines the types of their values and tensors, and lays out new files."""
