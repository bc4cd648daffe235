"""Functions that merge methods share: thresholds, slices in pieces, products of columns, weights."""
