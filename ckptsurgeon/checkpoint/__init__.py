"""An open checkpoint: a read-only mapping from key to header, whatever the format, nothing executed."""
