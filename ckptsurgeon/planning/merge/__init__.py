"""Plans of ``merge``."""
