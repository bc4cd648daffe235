"""The formats of manifests (lists of clips); each module defines one format as ``MANIFEST``."""
