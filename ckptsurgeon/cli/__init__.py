"""The command line: one small file for each verb, which parses, calls the API and prints."""

from .app import main

__all__ = ["main"]
