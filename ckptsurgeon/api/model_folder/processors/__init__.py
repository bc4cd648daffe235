"""Notes on the files of processors (which prepare images, audio and texts) that contradict the network."""
