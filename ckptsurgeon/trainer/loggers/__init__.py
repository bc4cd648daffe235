"""Where the figures of a run go besides its log: one module each, found by its name."""
