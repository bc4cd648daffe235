"""The recipe: what made an output, carried by the output itself.

Version, verb, arguments, seed, sources (name, path relative to the output, size, header SHA-256), what became of
each tensor and its CRC-32. No times, no absolute paths: the same inputs give the same bytes. The seal is a digest
over everything in the output that is not a tensor.
"""
