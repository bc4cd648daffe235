"""Devices, signals, random states, torch.compile, and counts of floating-point operations."""
