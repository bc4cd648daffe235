"""Devices, memory, random state and signals."""
