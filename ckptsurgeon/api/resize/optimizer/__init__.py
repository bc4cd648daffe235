"""Resizes the state of an optimizer: moments change as the gradients of the weights do."""
