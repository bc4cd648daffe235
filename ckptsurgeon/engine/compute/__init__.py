"""Computes tensors that are not plain copies (cast, resized, merged, factored) in blocks, in bounded memory."""
