"""Destinations that are torch modules: built without their memory, their initial values drawn when asked for."""
