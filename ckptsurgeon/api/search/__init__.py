"""Searches the parameters of a recipe, or a greedy soup of models, by the score that an evaluation command prints."""
