"""``merge``: models, method, parameters and vocabularies, as flags or as a configuration of mergekit."""
