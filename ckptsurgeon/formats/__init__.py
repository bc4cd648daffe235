"""Reads and writes checkpoint formats.

Each format has one module here or in ``exported``, which defines an object ``FORMAT``. This object recognises the files
of the format and reads their headers. If the format can be written, ``FORMAT.writer`` says where the bytes of each
tensor go; the package ``engine`` writes them. To add a format, add a module, and a row to the table ``MARKS`` in
``base/format_table.py``: without the row, the module is imported for every source. If the files have a new suffix, add
it to ``SUFFIXES`` in the same file: in a folder, files with these suffixes are taken for weights.
"""
