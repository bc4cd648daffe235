"""Reads and writes checkpoint formats.

Each format is one module here that defines ``FORMAT``: it recognises its files, reads their headers, and says where the
bytes of each tensor of an output go. To add a format, add a module; if its files have a new suffix,
add that to ``SUFFIXES`` in ``_choosing.py``, by which weights are found in a folder. The engine writes the bytes.
"""
