"""Methods that make one tensor from several: merge methods and low-rank adapters."""
