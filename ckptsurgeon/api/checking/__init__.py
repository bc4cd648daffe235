"""Facts for ``check``: files that may be damaged, the folder around the weights, an adapter and its base."""
