"""Checks of values: numbers that are not finite, constant or out of family, copies, dtypes, scales."""
