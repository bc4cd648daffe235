"""Keys in files: Ed25519, and the elliptic curves that sigstore's own tool takes.

The package ``cryptography`` reads them. It is imported when a key is used: an output without a signature needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, SourceError
from ...util.text import escape
from ..small_files import read_file

__all__ = ["Signer", "Verifier", "load_signer", "load_verifier"]

KEY_BYTES = 64 << 10
"""More than any key of these kinds has."""

MAKE = (
    "openssl genpkey -algorithm ed25519 -out key.pem makes one; openssl pkey -in key.pem -pubout gives its public half."
)


@dataclass(frozen=True)
class Signer:
    """What signs bytes; ``hint`` tells the key from others."""

    sign: Callable[[bytes], bytes]
    hint: str


@dataclass(frozen=True)
class Verifier:
    """What says whether a signature over bytes is by this key; ``hint`` tells the key from others."""

    is_by: Callable[[bytes, bytes], bool]
    hint: str


def load_signer(path: str) -> Signer:
    """Return what signs with the private key in a file; raises ConfigError or SourceError."""
    key = _loaded(path)
    if not hasattr(key, "sign"):
        raise ConfigError(f"{escape(path)} is a public key; to sign takes the private one.", hint=MAKE)
    extra = _arguments(key.public_key(), path)
    return Signer(lambda data: bytes(key.sign(data, *extra)), _hint(key.public_key()))


def load_verifier(path: str) -> Verifier:
    """Return what checks signatures with the key in a file, of a private one with its public half."""
    key = _loaded(path)
    from cryptography.exceptions import InvalidSignature  # which is there, now that the key could be read

    public = key.public_key() if hasattr(key, "sign") else key
    extra = _arguments(public, path)

    def is_by(signature: bytes, data: bytes) -> bool:
        try:
            public.verify(signature, data, *extra)
        except InvalidSignature:
            return False
        return True

    return Verifier(is_by, _hint(public))


def _loaded(path: str) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as keys
    except ImportError as error:
        raise ConfigError(
            f"--key needs the package cryptography, which cannot be imported: {error}.",
            hint="pip install 'ckptsurgeon[sign]' installs it.",
        ) from error
    try:
        data = read_file(path, KEY_BYTES)
    except OSError as error:
        raise SourceError(f"the key {escape(path)} cannot be read: {error.strerror}.", hint=MAKE) from error
    try:
        if b"PRIVATE KEY-----" in data:
            is_openssh = b"BEGIN OPENSSH" in data
            return keys.load_ssh_private_key(data, None) if is_openssh else keys.load_pem_private_key(data, None)
        return keys.load_pem_public_key(data) if b"-----BEGIN" in data else keys.load_ssh_public_key(data)
    except TypeError as error:  # which is how it says so
        raise ConfigError(
            f"the key {escape(path)} is encrypted, and no password is asked for.",
            hint="Name a copy without a password: openssl pkey -in KEY -out COPY, ssh-keygen -p -f COPY.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{escape(path)} is no key in PEM or of OpenSSH.", hint=MAKE) from error


def _arguments(public: Any, path: str) -> tuple[Any, ...]:
    """Return what signing takes beside the bytes; raises ConfigError for a key of another kind."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(public, ed25519.Ed25519PublicKey):
        return ()
    digests: dict[str, Callable[[], hashes.HashAlgorithm]] = {
        "secp256r1": hashes.SHA256,
        "secp384r1": hashes.SHA384,
        "secp521r1": hashes.SHA512,
    }
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in digests:
        return (ec.ECDSA(digests[public.curve.name]()),)
    raise ConfigError(f"{escape(path)} is a key neither of Ed25519 nor of a curve P-256, P-384 or P-521.", hint=MAKE)


def _hint(public: Any) -> str:
    """Return the SHA-256 of the public key in PEM, as model-signing identifies keys."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
