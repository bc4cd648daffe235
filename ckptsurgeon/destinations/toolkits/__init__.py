"""Configurations of ESPnet and SpeechBrain, as their toolkits read them."""
