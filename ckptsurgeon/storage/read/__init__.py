"""Opens a URI as a file or folder that can be read in ranges."""
