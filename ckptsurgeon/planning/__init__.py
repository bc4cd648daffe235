"""Planners, which make plans from headers and rules. They open no file, log nothing and read no tensor values."""
