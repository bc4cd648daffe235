"""Permutes the axes of models before a merge, so that their weights match those of a reference model."""
