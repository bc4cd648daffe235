"""Functions that merge methods share: thresholds, pieces, columns, weights."""
