"""What the files of a tokeniser say of its tokens, held against the weights, the configuration and each other."""
