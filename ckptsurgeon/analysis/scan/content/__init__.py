"""Scans files other than pickles: numpy arrays, Keras models, configurations and programs."""
