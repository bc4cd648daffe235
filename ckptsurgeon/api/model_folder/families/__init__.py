"""Checks the shapes of tensors and the values of fields in config.json by rules for well-known model types."""
