"""``transplant`` and ``load_into``."""
