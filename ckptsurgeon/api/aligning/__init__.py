"""Aligns models with a reference before they are merged."""
