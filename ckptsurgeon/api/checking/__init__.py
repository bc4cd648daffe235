"""Collects facts for ``check``: on files that may be damaged, on a model's folder, on an adapter and its base."""
