"""Checks of values: NaN and infinities, constants, outliers in a family, copies, dtypes, scales."""
