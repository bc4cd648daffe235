"""Carries plans out: streams from file to file, computes what must be, and puts the output in place atomically."""
