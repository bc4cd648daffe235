"""Turns results of the API into rich renderables for a terminal; contains no decisions on checkpoints."""
