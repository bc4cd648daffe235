"""Planners: they make plans from headers and rules, without opening files, logging or reading tensor values."""
