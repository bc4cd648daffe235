"""``prove``: runs two networks on the same inputs, reading the weights block by block, and compares the outputs."""
