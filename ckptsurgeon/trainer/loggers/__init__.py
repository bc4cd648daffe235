"""The loggers, which get the figures of a run in addition to its log: one module for each, found by its name."""
