"""Runs two networks on the same inputs, with weights that are read block by block."""
