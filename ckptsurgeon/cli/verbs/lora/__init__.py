"""The verbs of low-rank adapters: ``ckpt lora merge``, ``extract``, ``concat``, ``convert`` and ``resize``."""
