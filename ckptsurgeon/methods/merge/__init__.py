"""Merge methods: functions that merge the tensors that several models have under one name. One file per family.

A file lists its methods in ``METHODS``. A method is a function; its signature defines the parameters.
"""
