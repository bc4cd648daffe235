"""Files that are no pickles: arrays, Keras models, texts."""
