"""Defines what all formats share: headers, limits, shards, and seals (digests of the bytes outside the tensors)."""
