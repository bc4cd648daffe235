"""Groups of axes of a network that may be permuted together without a change of what it computes."""
