"""Tensors that are computed: cast, resized, merged, factored; in blocks, in bounded memory."""
