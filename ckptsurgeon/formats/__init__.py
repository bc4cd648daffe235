"""Reads and writes checkpoint formats.

Each format is one module here that defines ``FORMAT``: it recognises its files, reads their headers, and says where the
bytes of each tensor of an output go. To add a format, add a module: nothing else has to be changed. The engine writes
the bytes themselves.
"""
