"""Destinations that are torch modules: built without storage, with initial values drawn when needed."""
