"""Checks of a checkpoint before it is shipped or trained. Each check is a file in one of these folders."""
