"""Makes the metadata of GGUF files, and converts models between the layouts of transformers and llama.cpp."""
