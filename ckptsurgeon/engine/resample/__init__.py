"""Resampling: adapts tensors to the shape that another model needs, as is usual in the field. Opens no file.

A tensor is resampled by a linear map along some axes, computed in double precision with weights that are the same on
every machine, so that the output can be reproduced bit for bit.
"""
