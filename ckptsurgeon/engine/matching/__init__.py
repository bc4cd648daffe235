"""Weight matching: finds the order of a model's channels, heads and experts that makes it most similar to another."""
