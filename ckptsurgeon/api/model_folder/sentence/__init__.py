"""Notes on the modules of a sentence-transformers folder: how two folders differ, and what contradicts the network."""
