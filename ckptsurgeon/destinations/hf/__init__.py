"""Destinations that transformers defines."""
