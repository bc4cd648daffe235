"""Notes on tokens that the pre-tokeniser of tokenizer.json splits, so that they are never produced."""
