"""The state of a run between two steps, and how it is saved and restored."""
