"""``transplant`` and ``load_into``: put weights from sources into a destination or into a live module."""
