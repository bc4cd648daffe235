"""Weight matching: orders a model's channels, heads and experts so that it becomes most similar to another model."""
