"""Layouts: how different libraries name, order and shape the tensors of one network, and conversions between them."""
