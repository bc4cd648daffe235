"""The parts of GGUF files: the reading of their header, the types of their values and tensors, and their layout."""
