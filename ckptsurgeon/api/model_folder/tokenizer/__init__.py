"""Checks a tokeniser's files against the weights, against the configuration and against each other."""
