"""The optimiser, its schedule, and what is frozen."""
