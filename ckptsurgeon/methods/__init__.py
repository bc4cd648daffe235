"""How tensors become one: merge methods and low-rank adapters."""
