"""What is packed or compressed: which program unpacks it, and what of it to name then. Pure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from ...util.text import escape, listing
from .._choosing import is_weights
from .words import Foreign, argument

__all__ = ["in_tar", "in_zip", "packed"]

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"\x1f\x9d", "compress", "uncompress"),
)
_ARCHIVES = ((b"7z\xbc\xaf\x27\x1c", "7z", "7z x"), (b"Rar!\x1a\x07", "rar", "unrar x"))
_TARS = re.compile(r"\.(tar(\.\w+)?|t[gbx]z2?|tzst|nemo)$", re.IGNORECASE)
_NEMO = ("model_config.yaml", "model_weights.ckpt", "model_weights")


def packed(head: bytes, name: str) -> Foreign | None:
    """Return what a compressed file is."""
    for magic, kind, program in _ARCHIVES:
        if head.startswith(magic):
            return Foreign(f"a {kind} archive", f"Unpack it, and name the checkpoint in it: {program} {argument(name)}")
    for magic, kind, program in _COMPRESSED:
        if head.startswith(magic):
            return _compressed(head, name, kind, program)
    return None


def _compressed(head: bytes, name: str, kind: str, program: str) -> Foreign:
    inside = _inflated(head) if kind == "gzip" else b""
    if inside[257:262] != b"ustar" and not _TARS.search(name):
        return Foreign(f"compressed with {kind}", f"Unpack it, and name what comes out: {program} {argument(name)}")
    first = inside[:100].partition(b"\0")[0].decode("utf-8", "replace").rpartition("/")[2]
    if first in _NEMO or name.lower().endswith(".nemo"):
        return Foreign(
            f"a NeMo model, a tar archive compressed with {kind}",
            f"Unpack it, and name its model_weights.ckpt: tar xf {argument(name)}",
        )
    return Foreign(
        f"a tar archive compressed with {kind}",
        f"Unpack it, and name the checkpoint in it: tar xf {argument(name)}",
    )


def _inflated(head: bytes) -> bytes:
    """Return the first bytes of what is in a gzip file, as far as they can be had."""
    try:
        return zlib.decompressobj(31).decompress(head, 512)
    except zlib.error:
        return b""


def in_tar(names: Sequence[str], name: str) -> Foreign | None:
    """Return what a tar archive of members of these names is; None for one of no checkpoint."""
    bare = {one.rstrip("/").rpartition("/")[2]: one for one in names}
    if _NEMO[0] in bare:
        member = next((bare[one] for one in _NEMO[1:] if one in bare), "")
        return Foreign("a NeMo model, a tar archive", _take("tar xf", name, member))
    weights = [one for one in names if is_weights(one)]
    if not weights:
        return None
    return Foreign(f"a tar archive with {listing(weights, 2, where='')} in it", _take("tar xf", name, weights[0]))


def in_zip(names: Sequence[str], name: str) -> Foreign | None:
    """Return what a zip archive of records of these names is; None for one of torch's, or of no checkpoint."""
    bare = {one.rpartition("/")[2] for one in names}
    if any(one.count("/") <= 1 and f"/{one}".endswith("/data.pkl") for one in names):
        return None
    if bare & {"archive_format", "serialized_exported_program.json"}:
        advice = "Load it with torch.export.load, and save its state_dict() with torch.save."
        return Foreign("a program of torch.export (.pt2)", advice)
    if {"config.json", "model.weights.h5"} <= bare:
        advice = "Load it in Keras, and save the arrays with numpy.savez: ckpt reads .npz."
        return Foreign("a Keras model, a zip archive", advice)
    weights = [one for one in names if is_weights(one)]
    if "MAR-INF/MANIFEST.json" in names:
        return Foreign("a model archive of TorchServe", _take("unzip", name, *weights[:1]))
    if not weights:
        return None
    return Foreign(f"a zip archive with {listing(weights, 2, where='')} in it", _take("unzip", name, weights[0]))


def _take(command: str, name: str, member: str = "") -> str:
    """Return the advice to unpack one member and name it."""
    if not member:
        return f"Unpack it, and name the checkpoint in it: {command} {argument(name)}"
    last = escape(member.rstrip("/").rpartition("/")[2])
    return f"Unpack {last}, and name it: {command} {argument(name)} {argument(member)}"
