"""Checks of a checkpoint before it is shipped or trained. Each check is a module in one of the subfolders."""
