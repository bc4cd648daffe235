"""SpeechBrain's ``Pretrainer``, through our planner."""
