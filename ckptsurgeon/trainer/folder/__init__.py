"""The folder of a run: checkpoints, curves, its lock."""
