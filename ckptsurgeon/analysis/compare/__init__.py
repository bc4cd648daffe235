"""Holds two checkpoints against each other: by headers, by values, by content under other names."""
