"""Plans of ``transplant``."""
