"""The signature itself: a Sigstore bundle with a DSSE envelope around an in-toto statement that lists every file.

The format is that of sigstore's model-signing 1.0 (model_signing_format.md of sigstore/model-transparency),
the Sigstore bundle v0.3 (docs.sigstore.dev/about/bundle), DSSE v1.0 (github.com/secure-systems-lab/dsse), in-toto
Statement v1 (github.com/in-toto/attestation/tree/main/spec/v1). ``model_signing verify key`` checks signatures by keys
of elliptic curves; Ed25519 it does not take, though the bundle does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ...errors import VerifyError
from ..json_text import read_json
from .keys import Signer, Verifier

__all__ = ["MODEL_SIGNATURE", "SINGLE", "read_signature", "sign", "signature_of"]

MODEL_SIGNATURE = "model.sig"
"""The signature's name in a folder, as model-signing has it."""

SINGLE = "."
"""The name of a file that is signed alone."""

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"


def signature_of(path: str, *, folder: bool) -> str:
    """Return where the signature of an output lies: in its folder, or beside the file."""
    return os.path.join(path, MODEL_SIGNATURE) if folder else f"{path}.sig"


def sign(name: str, digests: Mapping[str, str], signer: Signer) -> bytes:
    """Return the signature over files, by name with their SHA-256; ``name`` is what the whole is called."""
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
    """Return the SHA-256 of each file that a signature is over; raises VerifyError if it is not by the key."""
    try:
        bundle = read_json(data)
        envelope = bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        if (bundle["mediaType"], envelope["payloadType"], len(signatures)) != (BUNDLE, PAYLOAD, 1):
            raise ValueError("another kind of bundle")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise VerifyError("is damaged, or is no bundle of sigstore's") from error
    if not verifier.is_by(signatures[0], _encoded(payload)):
        raise VerifyError("is not by this key")
    try:
        return _digests(read_json(payload))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise VerifyError("is by this key, and over something else than the files of a model") from error


def _digests(statement: Any) -> dict[str, str]:
    if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
        raise ValueError("another statement")
    (subject,) = statement["subject"]
    rows = statement["predicate"]["resources"]
    found = {str(row["name"]): str(row["digest"]) for row in rows}
    if len(found) != len(rows) or any(row["algorithm"] != "sha256" for row in rows):
        raise ValueError("a name twice, or another digest")
    if subject["digest"]["sha256"] != _root(row["digest"] for row in rows):
        raise ValueError("the digest of the whole is of other files")
    return found


def _root(digests: Any) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """Return what is signed of a payload: DSSE's pre-authentication encoding, which binds its type."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
