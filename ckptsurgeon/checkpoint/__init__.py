"""Opens checkpoints of any format as a read-only mapping from key to header, without executing anything."""
