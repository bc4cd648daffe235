"""Encodings: how methods of quantisation store one logical tensor as several. Pure: keys, dtypes and shapes alone.

One file for each method, which is found by what it calls ``ENCODINGS``.
"""
