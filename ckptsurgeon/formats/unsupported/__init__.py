"""Files and folders that are not checkpoints this package reads: what they are, and what to do with them."""
