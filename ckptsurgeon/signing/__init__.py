"""Signatures over the files of an output, in the format of sigstore's model-signing, by a key of one's own."""

from .bundle import MODEL_SIGNATURE, SINGLE, read_signature, sign, signature_of
from .keys import load_signer, load_verifier

__all__ = ["MODEL_SIGNATURE", "SINGLE", "load_signer", "load_verifier", "read_signature", "sign", "signature_of"]
