"""Bundled models, one file each, as ``MODEL``; a configuration names the file."""
