"""Signatures over the files of an output, in the format of sigstore's model-signing, by a key of one's own."""
