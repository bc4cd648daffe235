"""Checks what the files of a tokeniser say of its tokens against the weights, the configuration and each other."""
