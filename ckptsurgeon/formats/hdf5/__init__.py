"""Reads the structures of an HDF5 file: objects, groups, B-trees, heaps, and the chunks of datasets."""
