"""The folder of a model: config.json, tokeniser and labels, held against the weights and carried to the output."""
