"""Destinations: a configuration, a checkpoint or a live module becomes a TargetSpec. One file for each kind."""
