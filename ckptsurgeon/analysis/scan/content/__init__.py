"""Scans files other than pickles: arrays, Keras models, texts."""
