"""Helpers that know nothing of checkpoints."""
