"""Planners: headers and rules become a plan. They open nothing, log nothing and read no tensor."""
