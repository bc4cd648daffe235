"""Reads the structures of an HDF5 file (objects, groups, B-trees, heaps, chunks), and lays out new files."""
