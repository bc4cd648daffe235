"""SpeechBrain's ``Pretrainer``, implemented with our planner."""
