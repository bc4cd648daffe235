"""Plans of ``lora extract``."""
