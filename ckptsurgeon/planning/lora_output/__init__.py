"""Plans that make adapters from adapters: ``lora concat``, ``lora convert`` and ``lora resize``."""
