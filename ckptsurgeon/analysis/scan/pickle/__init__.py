"""Pickles, decoded instruction by instruction without running one."""
