"""Groups of tensor dimensions that can be permuted together without changing what a network computes."""
