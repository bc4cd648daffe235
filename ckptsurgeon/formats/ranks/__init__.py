"""Joins the files of the ranks of distributed training, in which each rank saved its own part of the model."""
