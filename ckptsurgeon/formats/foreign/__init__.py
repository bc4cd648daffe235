"""Files that are not read: what they are, and what to do with them."""
