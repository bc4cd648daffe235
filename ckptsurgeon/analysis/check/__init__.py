"""Checks of a checkpoint before it is shipped or trained: each is a function in a file of one of these folders."""
