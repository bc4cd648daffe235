"""Makes rows of new tokens from a donor: another model, whose tokeniser has these tokens (``--new-tokens omp``)."""
