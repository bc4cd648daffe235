"""Scans zip archives, tar archives and compressed files, with their contents."""
