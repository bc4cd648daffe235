"""What merge methods share: thresholds, pieces, columns, weights."""
