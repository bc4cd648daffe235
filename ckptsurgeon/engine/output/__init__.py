"""Prepares the output of a plan: the layout of its files, its companions, its signature."""
