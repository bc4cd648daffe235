"""Patches: what changed between two checkpoints, bit for bit."""
