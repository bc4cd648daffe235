"""Recognises quantised weights, which are stored as several tensors (codes, scales), by keys, dtypes and shapes alone.

There is one file for each method of quantisation; its attribute ``ENCODINGS`` registers it.
"""
