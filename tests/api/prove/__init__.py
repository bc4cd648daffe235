"""Proofs that two networks compute the same."""
