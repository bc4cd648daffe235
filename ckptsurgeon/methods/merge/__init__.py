"""Merge methods: functions that merge the tensors that several models have under one name. One file per family.

A file lists its methods in ``METHODS``; a method is a function with a paper, and its signature gives the parameters.
"""
