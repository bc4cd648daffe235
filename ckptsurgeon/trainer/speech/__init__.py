"""Synthesised speech with transcripts, made from a seed, for the demo and the tests."""
