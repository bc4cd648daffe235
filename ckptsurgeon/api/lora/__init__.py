"""The verbs for low-rank adapters, such as ``lora_merge`` and ``lora_extract``, and reading the files of adapters."""
