"""Lists of clips, as the toolkits keep them: one kind each file, as ``MANIFEST``."""

from .read import Manifest, read_manifests

__all__ = ["Manifest", "read_manifests"]
