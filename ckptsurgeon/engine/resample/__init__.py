"""Resamples tensors to the shape that another model needs, by established methods, and opens no files.

A tensor is resampled by a linear map along some axes. The map is computed in double precision, with weights that are
the same on every machine, so that the output is the same bit for bit.
"""
