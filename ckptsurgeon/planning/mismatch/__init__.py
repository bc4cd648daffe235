"""Policies for tensors whose shape or dtype differs from the destination's. Opens no file, needs no numpy."""
