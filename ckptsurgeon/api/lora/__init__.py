"""``lora_merge`` and ``lora_extract``, and adapters as they lie on disk."""
