"""The loggers, which get the figures of a run in addition to its log. Each is a module with the name of the logger."""
