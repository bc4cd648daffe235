"""Proposes operations (split, concat, transpose and others) that turn a source's tensors into a destination's."""
