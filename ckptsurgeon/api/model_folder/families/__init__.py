"""Knows the sizes of well-known model types by the fields of their configurations."""
