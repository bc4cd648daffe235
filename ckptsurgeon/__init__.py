"""ckptsurgeon: put the weights of one network into another, and know exactly what happened."""

__version__ = "0.1.0"
