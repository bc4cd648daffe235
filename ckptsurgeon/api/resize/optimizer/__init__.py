"""Resizes the state of an optimizer: its moments change in the same way as the gradients of the resized weights."""
