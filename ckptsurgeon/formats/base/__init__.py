"""Holds what all formats share: headers, limits, shards, seals."""
