"""Searches the parameters of a recipe, and greedy soups, by the score that an evaluation command prints."""
