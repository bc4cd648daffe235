"""Rounds tensors to the codes of quantised ones: one module for each family of encodings, which needs numpy."""
