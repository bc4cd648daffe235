"""The layout and the metadata of GGUF files."""
