"""Joins what the ranks of a training run have saved, each in files of its own."""
