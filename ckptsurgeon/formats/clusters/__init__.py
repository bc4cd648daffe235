"""Joins the files of a distributed training run, in which each rank saved its own part of the model."""
