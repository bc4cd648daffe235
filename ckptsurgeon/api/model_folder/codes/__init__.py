"""Describes quantised tensors as the plain tensors that they decode to, and makes notes on their stored shapes."""
