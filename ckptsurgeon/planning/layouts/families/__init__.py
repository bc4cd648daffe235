"""Families of networks, one file each: a module that defines FAMILY is found and offered by ``--layout``."""
