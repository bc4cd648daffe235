"""The search for a recipe's best parameters: its space, its trials, its result and a picture of the scores."""
