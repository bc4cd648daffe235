"""Scales and zero points that no quantisation method writes: their kinds, what was found, and the notes on it."""
