"""Inspects, compares, matches, scans, verifies and explains checkpoints, and gathers the data of a page."""
