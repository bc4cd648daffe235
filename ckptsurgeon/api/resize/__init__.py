"""The verb resize: another width, depth, or number of heads, experts or channels."""
