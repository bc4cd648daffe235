"""Clips, features, batches."""

from ...lazy import lazy_names

_HOMES = {
    ".clip": ("Clip",),
    ".inputs": ("Inputs",),
    ".labels": ("Labels",),
    ".loader": ("Batches",),
    ".order": ("epoch_batches", "padding", "sorted_batches"),
    ".split": ("Split", "located", "read_split"),
}
__getattr__ = lazy_names(__name__, _HOMES)
