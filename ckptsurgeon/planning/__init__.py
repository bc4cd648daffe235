"""Planners: they make a plan from headers and rules. They open no file, log nothing and read no tensor values."""
