"""Reads and writes checkpoint formats.

Each format has one module here or in ``exported``, which defines an object ``FORMAT``. This object recognises the files
of the format and reads their headers. If the format can be written, ``FORMAT.writer`` says where the bytes of each
tensor go; the package ``engine`` writes them. To add a format, add a module. If its files have a new suffix, also add
the suffix to ``SUFFIXES`` in ``base/marks.py``: in a folder, files with these suffixes are taken for weights.
"""
