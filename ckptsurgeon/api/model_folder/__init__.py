"""The folder of a model: config.json, tokeniser and labels are checked against the weights and copied to the output."""
