"""Zip, tar and compressed files, and what lies in them."""
