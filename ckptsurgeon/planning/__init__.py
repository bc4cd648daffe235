"""Planners: they make plans from headers and rules; they open no file, log nothing and read no values of tensors."""
