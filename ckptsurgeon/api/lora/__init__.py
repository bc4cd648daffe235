"""The verbs of low-rank adapters, ``lora_merge`` to ``lora_resize``, and reading the files of adapters."""
