"""Notes on the files of processors, which must agree with the network that gets the inputs that processors make."""
