"""Collects the facts for ``check``: on files that may be damaged, on a model's folder, an adapter and its base."""
