"""Computes tensors that are not plain copies (cast, resized, merged, factored), block by block, in bounded memory."""
