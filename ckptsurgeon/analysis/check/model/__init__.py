"""Checks of the files beside the weights: configuration, tokeniser, settings of quantisation, card."""
