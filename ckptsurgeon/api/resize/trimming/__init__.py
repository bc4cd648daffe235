"""Cuts a vocabulary to the tokens that texts use."""
