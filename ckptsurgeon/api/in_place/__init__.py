"""Writes new names into the headers of a checkpoint itself (``rename --in-place``)."""
