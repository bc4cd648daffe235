"""Quantised tensors as the plain tensors that they decode to, and notes on their stored shapes."""
