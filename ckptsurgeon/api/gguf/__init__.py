"""What a GGUF file has besides tensors: its metadata, made from another GGUF file or from a model's folder."""
