"""Zip archives, here or at an address."""
