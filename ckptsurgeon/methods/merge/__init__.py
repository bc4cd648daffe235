"""Merge methods: how several tensors of one name become one. One file per family, pure functions.

A file offers its methods as ``METHODS``; its functions, their signatures and their papers are all there is to a method.
"""
