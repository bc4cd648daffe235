"""Compares two checkpoints: by headers, by values, by content under other names."""
