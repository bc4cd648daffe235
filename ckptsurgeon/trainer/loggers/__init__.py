"""Loggers, such as TensorBoard: they get a copy of a run's log. Each is a module whose name is the logger's name."""
