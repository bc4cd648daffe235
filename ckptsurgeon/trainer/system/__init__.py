"""Devices, signals, random states, torch.compile, operation counts."""
