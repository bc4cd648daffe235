"""Constructs a module without storage: records what its constructor does, and later runs parts of it."""
