"""Brings files that lie elsewhere (a folder, a hub repository, a web address) to a place on this machine."""
