"""Transcribed speech out of a synthesiser, made from a seed: what the demo and the tests train on."""
