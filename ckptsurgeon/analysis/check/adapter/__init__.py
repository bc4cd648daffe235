"""Checks of a PEFT adapter, alone and against its base model."""
