"""Clips: read, resampled, turned into features."""
