"""Adapters: tensors whose shape another model wants otherwise, resampled as the field does it. numpy, no files.

Each is a linear map along some axes, computed in double precision from weights that are the same on every machine, so
that what is written can be computed again bit for bit.
"""
