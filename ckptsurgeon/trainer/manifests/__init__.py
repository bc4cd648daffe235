"""Lists of clips, as the toolkits keep them: one kind each file, as ``MANIFEST``."""
