"""Zip, tar and compressed files, and their contents."""
