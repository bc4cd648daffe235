"""One run of a plan, and its checksums."""
