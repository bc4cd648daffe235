"""Recognises how methods of quantisation store one logical tensor as several, by keys, dtypes and shapes alone.

One file for each method, found by its attribute ``ENCODINGS``.
"""
