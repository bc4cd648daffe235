"""Plans of ``rename``, ``filter``, ``convert`` and ``average``."""
