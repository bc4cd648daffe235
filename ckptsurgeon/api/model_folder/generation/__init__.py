"""Notes on the settings of generation in a model's folder: lengths, languages, alignment heads."""
