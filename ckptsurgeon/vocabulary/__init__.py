"""Token lists of the toolkits, and which row of one vocabulary is which row of another. Nothing in a file is run."""
