"""Destinations: makes a TargetSpec of a configuration, a checkpoint or a live module. One file for each kind."""
