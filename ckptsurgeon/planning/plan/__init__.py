"""Plans: where the values of every destination tensor come from. Made from headers alone, reviewable as JSON."""
