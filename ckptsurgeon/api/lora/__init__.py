"""``lora_merge`` and ``lora_extract``, and the files of adapters."""
