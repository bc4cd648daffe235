"""A class with the interface of SpeechBrain's ``Pretrainer`` that loads checkpoints like ``load_into``."""
