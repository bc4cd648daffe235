"""Plans another width, depth, or number of heads, experts or channels, from the shapes of two configurations."""
