"""Notes on tokens that the pre-tokeniser in tokenizer.json splits, so that the tokeniser never produces them."""
