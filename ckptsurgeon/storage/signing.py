"""Signs outputs and checks signatures: a Sigstore bundle with a DSSE envelope around an in-toto statement."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, SourceError, VerifyError
from ..util.text import escape
from .json_text import read_json
from .small_files import read_file

__all__ = [
    "MODEL_SIGNATURE",
    "SINGLE",
    "Signer",
    "Verifier",
    "load_signer",
    "load_verifier",
    "read_signature",
    "sign",
    "signature_of",
]

# Keys in files: Ed25519, and the elliptic curves that sigstore's own tool accepts.
#
# The package ``cryptography`` reads them. It is imported when a key is used: an output without a signature needs none.

KEY_BYTES = 64 << 10
"""The largest size of a key file in bytes; a larger file is not a key."""

MAKE = "Make a key: openssl genpkey -algorithm ed25519 -out key.pem; its public half: openssl pkey -in key.pem -pubout."
GET = "Give the public key of the person or program that signed the output, in PEM or OpenSSH format."


@dataclass(frozen=True)
class Signer:
    """Signs bytes with a private key; ``hint`` identifies the key."""

    sign: Callable[[bytes], bytes]
    hint: str


@dataclass(frozen=True)
class Verifier:
    """Checks signatures with a public key; ``hint`` identifies the key.

    ``is_by`` gets a signature and the signed bytes, and returns whether the signature was made with this key.
    """

    is_by: Callable[[bytes, bytes], bool]
    hint: str


def load_signer(path: str) -> Signer:
    """Return a signer with the private key in a file; raises ConfigError or SourceError."""
    key = _loaded(path, MAKE)
    if not hasattr(key, "sign"):
        raise ConfigError(f"{escape(path)} is a public key; signing needs the private key.", hint=MAKE)
    extra = _arguments(key.public_key(), path, MAKE)
    return Signer(lambda data: bytes(key.sign(data, *extra)), _hint(key.public_key()))


def load_verifier(path: str) -> Verifier:
    """Return a verifier with the key in a file; of a private key, the public half is used."""
    key = _loaded(path, GET)
    from cryptography.exceptions import InvalidSignature  # the package is installed, since the key could be read

    public = key.public_key() if hasattr(key, "sign") else key
    extra = _arguments(public, path, GET)

    def is_by(signature: bytes, data: bytes) -> bool:
        try:
            public.verify(signature, data, *extra)
        except InvalidSignature:
            return False
        return True

    return Verifier(is_by, _hint(public))


def _loaded(path: str, hint: str) -> Any:
    """Return the key in a file; ``hint`` is the hint of the error for a file that is missing or not a key."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as keys
    except ImportError as error:
        raise ConfigError(
            f"--key needs the package cryptography, which cannot be imported: {error}.",
            hint="Run pip install 'ckptsurgeon[sign]'.",
        ) from error
    try:
        data = read_file(path, KEY_BYTES)
    except OSError as error:
        raise SourceError(f"the key {escape(path)} cannot be read: {error.strerror}.", hint=hint) from error
    try:
        if b"PRIVATE KEY-----" in data:
            is_openssh = b"BEGIN OPENSSH" in data
            return keys.load_ssh_private_key(data, None) if is_openssh else keys.load_pem_private_key(data, None)
        return keys.load_pem_public_key(data) if b"-----BEGIN" in data else keys.load_ssh_public_key(data)
    except TypeError as error:  # how cryptography reports an encrypted key
        raise ConfigError(
            f"the key {escape(path)} is encrypted, and ckpt does not ask for passwords.",
            hint="Use a copy without a password: openssl pkey -in KEY -out COPY, or for an OpenSSH key: cp KEY COPY; "
            "ssh-keygen -p -f COPY.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{escape(path)} is not a key in PEM or OpenSSH format.", hint=hint) from error


def _arguments(public: Any, path: str, hint: str) -> tuple[Any, ...]:
    """Return the arguments of ``sign`` and ``verify`` that follow the data; they depend on the kind of the key.

    For Ed25519, there are none; for an elliptic curve, there is one: ECDSA with a hash. Raises ConfigError if the kind
    of the key is not supported; ``hint`` is its hint.
    """
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
    raise ConfigError(f"{escape(path)} is not an Ed25519 key or a key of the curve P-256, P-384 or P-521.", hint=hint)


def _hint(public: Any) -> str:
    """Return the SHA-256 of the public key in PEM, as model-signing identifies keys."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


# The signature itself: a Sigstore bundle with a DSSE envelope around an in-toto statement that lists every file.
#
# The format is that of sigstore's model-signing 1.0 (model_signing_format.md of sigstore/model-transparency), the
# Sigstore bundle v0.3 (docs.sigstore.dev/about/bundle), DSSE v1.0 (github.com/secure-systems-lab/dsse), in-toto
# Statement v1 (github.com/in-toto/attestation/tree/main/spec/v1). ``model_signing verify key`` checks signatures by
# keys of elliptic curves; it does not accept Ed25519, though the bundle format does.

MODEL_SIGNATURE = "model.sig"
"""The name of the signature in a folder, as in model-signing."""

SINGLE = "."
"""The name of the file in the signed statement if the output is a single file."""

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"


def signature_of(path: str, *, folder: bool) -> str:
    """Return the path of the signature of the output ``path``: inside it if it is a folder, else next to the file."""
    return os.path.join(path, MODEL_SIGNATURE) if folder else f"{path}.sig"


def sign(name: str, digests: Mapping[str, str], signer: Signer) -> bytes:
    """Return a signature of files: a Sigstore bundle in JSON.

    ``digests`` has the SHA-256 of each file by name; ``name`` is the name of the output as a whole.
    """
    names = sorted(digests)
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(digests[one] for one in names)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [MODEL_SIGNATURE],
            },
            "resources": [{"name": one, "algorithm": "sha256", "digest": digests[one]} for one in names],
        },
    }  # fmt: skip
    payload = json.dumps(statement, separators=(",", ":")).encode()
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": signer.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": _base64(signer.sign(_encoded(payload))), "keyid": ""}],
        },
    }
    return json.dumps(bundle).encode()


def read_signature(data: bytes, verifier: Verifier) -> dict[str, str]:
    """Return the SHA-256 of each signed file by name; raises VerifyError for a wrong signature or a damaged bundle."""
    try:
        bundle = read_json(data)
        envelope = bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        if (bundle["mediaType"], envelope["payloadType"], len(signatures)) != (BUNDLE, PAYLOAD, 1):
            raise ValueError("the file is not a Sigstore bundle with one signature of an in-toto statement")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise VerifyError("is damaged or not a Sigstore bundle") from error
    if not verifier.is_by(signatures[0], _encoded(payload)):
        raise VerifyError("was not made with this key, or was changed later")
    try:
        return _digests(read_json(payload))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise VerifyError("was made with this key, but does not list the files of a model") from error


def _digests(statement: Any) -> dict[str, str]:
    if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
        raise ValueError("the signed statement is not a list of the files of a model")
    (subject,) = statement["subject"]
    rows = statement["predicate"]["resources"]
    found = {str(row["name"]): str(row["digest"]) for row in rows}
    if len(found) != len(rows) or any(row["algorithm"] != "sha256" for row in rows):
        raise ValueError("a file is listed twice, or with another digest than SHA-256")
    if subject["digest"]["sha256"] != _root(row["digest"] for row in rows):
        raise ValueError("the digest of the whole model does not follow from the digests of the listed files")
    return found


def _root(digests: Any) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """Return the bytes that are signed for ``payload``: DSSE's pre-authentication encoding of payload and type."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
