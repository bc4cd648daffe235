"""The budget of a scan, its findings, the context that they are made in."""
