"""Compares layers with each other and with the configuration: number, kinds, dtypes, experts, rotary settings."""
