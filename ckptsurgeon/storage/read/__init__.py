"""Where bytes come from: a URI becomes a file or a folder that can be read in ranges."""
