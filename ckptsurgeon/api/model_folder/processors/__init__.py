"""Notes on the files of processors, which have to agree with the network that gets what they make."""
