"""The search of a recipe's parameters as plain data: its space, its trials, its result and a picture of its scores."""
