"""Makes a TargetSpec, which describes a destination, from a configuration, a checkpoint or a live module."""
