"""Plans: the origin of the values of every destination tensor, made from headers alone, reviewable as JSON."""
