"""The verb ``resize``: changes the width, the depth, or the number of heads, experts or channels of a model."""
