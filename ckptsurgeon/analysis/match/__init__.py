"""Proposes which tensors of one model are which of another's, from headers alone. Proposes only."""
