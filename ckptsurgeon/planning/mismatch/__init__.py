"""Policies for tensors whose shape or dtype differs from the destination's. Pure, without numpy."""
