"""Merge methods: functions that make one tensor from several of one name. One file per family, pure functions.

A file lists its methods in ``METHODS``; a method is a function, its signature and its paper.
"""
