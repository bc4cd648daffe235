"""Rereads an output and holds it against its recipe, its plan and its sources, bit for bit."""
