"""Rereads an output and compares it with its recipe, its plan and its sources, bit for bit."""
