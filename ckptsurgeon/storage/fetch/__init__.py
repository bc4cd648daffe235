"""Fetches files from a folder, a hub repository or a web address to this machine."""
