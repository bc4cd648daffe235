"""Scales and zero points that no quantisation method writes: their kinds, the tensors that have them, and notes."""
