"""Families of decoders with experts."""
