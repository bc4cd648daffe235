"""Makes and applies patches: the exact (bitwise) differences between two checkpoints."""
