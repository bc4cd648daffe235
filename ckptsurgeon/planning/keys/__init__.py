"""Key patterns and rules: the language in which users select and rename tensors. Opens no file."""
