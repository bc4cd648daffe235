"""Plans of ``lora merge``."""
