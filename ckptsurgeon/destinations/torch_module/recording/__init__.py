"""Constructing a module without storage: what its constructor does, written down and run again in part."""
