"""Plans: for every destination tensor where its values come from, made from headers alone, reviewable as JSON."""
