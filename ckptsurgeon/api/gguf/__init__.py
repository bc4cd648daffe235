"""Makes the metadata of a GGUF file, from another GGUF file or from a model's folder, and changes layouts."""
