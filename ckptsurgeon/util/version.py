"""The version of this package, in a module without imports."""

__all__ = ["__version__"]

__version__ = "0.3.0"
