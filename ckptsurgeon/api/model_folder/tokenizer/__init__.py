"""Compares a tokeniser's files with the weights, with the configuration and with each other."""
