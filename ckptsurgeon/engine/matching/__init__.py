"""Weight matching: the permutations of one model's channels, heads and experts that make it most like another."""
