"""Bundled models, one file each: its name is what a configuration says, ``MODEL`` how it is built."""
