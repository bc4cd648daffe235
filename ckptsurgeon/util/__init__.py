"""Helpers that do not depend on checkpoints."""
