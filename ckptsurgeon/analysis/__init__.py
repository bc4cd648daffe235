"""Inspects, compares, matches, scans, verifies and explains checkpoints, and makes the HTML page of ``ckpt view``."""
