"""A class with the interface of SpeechBrain's ``Pretrainer``, implemented with our planner."""
