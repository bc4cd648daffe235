"""The verbs of low-rank adapters: ``ckpt lora merge`` and ``ckpt lora extract``."""
