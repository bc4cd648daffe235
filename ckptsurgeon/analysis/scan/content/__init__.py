"""Files other than pickles: arrays, Keras models, texts."""
