"""The verbs of patches: ``ckpt patch make``, ``apply`` and ``show``."""
