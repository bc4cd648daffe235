"""Key patterns and rules: the language in which people say which tensors they mean. Pure: opens nothing."""
