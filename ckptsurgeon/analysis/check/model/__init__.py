"""Checks of the files in the folder of the weights: configuration, tokeniser, settings of quantisation, model card."""
