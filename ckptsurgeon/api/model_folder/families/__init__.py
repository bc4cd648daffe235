"""Checks layers against each other and against the configuration: number, kinds, dtypes, experts, rotary settings."""
