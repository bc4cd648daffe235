"""Destinations that are torch modules: built without memory for their tensors; initial values are drawn when needed."""
