"""Reads the toolkits' token lists, and maps rows of one vocabulary to rows of another. No code in a file is run."""
