"""Recognises files that this package cannot read, by their first bytes, and gives advice on what to do with them.

The magic bytes of the formats are from their specifications. Nothing is opened: the functions get bytes and names, and
return descriptions.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...util.text import escape, listing
from ..base.format_table import is_weights, shards_among
from ..zip.archive import is_of_export, is_of_torch
from .text import ANEW, UnreadableFile, argument, text_kind

__all__ = ["HEAD", "PIECE_OF_DCP", "UnreadableFile", "foreign", "in_tar", "in_zip", "packed", "piece_of_dcp"]

# Compressed files, the program that unpacks each kind, and the suffix without which it refuses a file ('': none).

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip", ".gz"),
    (b"BZh", "bzip2", "bunzip2", ""),
    (b"\xfd7zXZ\0", "xz", "unxz", ".xz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd", ".zst"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4", ".lz4"),
    (b"\x1f\x9d", "compress", "uncompress", ".Z"),
)
_ARCHIVES = ((b"7z\xbc\xaf\x27\x1c", "7z", "7z x"), (b"Rar!\x1a\x07", "rar", "unrar x"))
_TARS = re.compile(r"\.(tar(\.\w+)?|t[gbx]z2?|tzst|nemo)$", re.IGNORECASE)
_KERAS = "model.weights.h5"
_NEMO = ("model_config.yaml", "model_weights.ckpt", "model_weights")


def packed(head: bytes, name: str) -> UnreadableFile | None:
    """Return a description of a compressed file that begins with ``head``; None if the file is not compressed."""
    for magic, kind, program in _ARCHIVES:
        if head.startswith(magic):
            return UnreadableFile(
                f"a {kind} archive", f"Unpack it, and use the checkpoint inside: {program} {argument(name)}"
            )
    for magic, kind, program, suffix in _COMPRESSED:
        if head.startswith(magic):
            command = f"{program} {argument(name)}"
            if not name.endswith(suffix):
                command = f"{program} -c {argument(name)} > unpacked"
            return _compressed(head, name, kind, command)
    return None


def _compressed(head: bytes, name: str, kind: str, command: str) -> UnreadableFile:
    inside = _inflated(head) if kind == "gzip" else b""
    if inside[257:262] != b"ustar" and not _TARS.search(name):
        return UnreadableFile(f"compressed with {kind}", f"Unpack it, and use the unpacked file: {command}")
    first = inside[:100].partition(b"\0")[0].decode("utf-8", "replace").rpartition("/")[2]
    if first in _NEMO or name.lower().endswith(".nemo"):
        return UnreadableFile(
            f"a NeMo model, a tar archive compressed with {kind}",
            f"Unpack it, and use its model_weights.ckpt: tar xf {argument(name)}",
        )
    return UnreadableFile(
        f"a tar archive compressed with {kind}",
        f"Unpack it, and use the checkpoint inside: tar xf {argument(name)}",
    )


def _inflated(head: bytes) -> bytes:
    """Return the first bytes of the content of a gzip file that begins with ``head``; b"" if it is damaged."""
    try:
        return zlib.decompressobj(31).decompress(head, 512)
    except zlib.error:
        return b""


def in_tar(names: Sequence[str], name: str) -> UnreadableFile | None:
    """Return a description of the tar archive ``name``, found by its member names ``names``; None if it is unknown."""
    bare = {one.rstrip("/").rpartition("/")[2]: one for one in names}
    if _NEMO[0] in bare:
        member = next((bare[one] for one in _NEMO[1:] if one in bare), "")
        return UnreadableFile("a NeMo model, a tar archive", _unpack_advice("tar xf", name, member))
    weights = [one for one in names if is_weights(one)]
    if not weights:
        return None
    return UnreadableFile(
        f"a tar archive that contains {listing(weights, 2, where='')}", _unpack_advice("tar xf", name, weights[0])
    )


def in_zip(names: Sequence[str], name: str) -> UnreadableFile | None:
    """Return a description of the zip archive ``name``, found by its record names ``names``.

    Returns None if the archive is unknown, or if torch wrote it.
    """
    bare = {one.rpartition("/")[2] for one in names}
    if is_of_torch(names) or is_of_export(names):
        return None
    if {"config.json", _KERAS} <= bare:
        return UnreadableFile("a compressed Keras model, a zip archive", _unpack_advice("unzip", name, _KERAS))
    weights = [one for one in names if is_weights(one)]
    if "MAR-INF/MANIFEST.json" in names:
        return UnreadableFile("a model archive of TorchServe", _unpack_advice("unzip", name, *weights[:1]))
    if not weights:
        return None
    is_sharded = bool(shards_among([one.rpartition("/")[2] for one in weights]))
    said = f"a zip archive that contains {listing(weights, 2, where='')}"
    return UnreadableFile(said, _unpack_advice("unzip", name, "" if is_sharded else weights[0]))


def _unpack_advice(command: str, name: str, member: str = "") -> str:
    """Return the hint to unpack one member of an archive and to use the unpacked file."""
    if not member:
        return f"Unpack it, and use the checkpoint inside: {command} {argument(name)}"
    last = escape(member.rstrip("/").rpartition("/")[2])
    return f"Unpack {last}, and use it: {command} {argument(name)} {argument(member)}"


_PIECE = re.compile(r"__\d+_\d+\.distcp")


PIECE_OF_DCP = ".distcp"
"""The suffix of the data files of ``torch.distributed.checkpoint``."""


def piece_of_dcp(name: str, folder: str) -> UnreadableFile | None:
    """Return a description of one data file of ``torch.distributed.checkpoint``; None if ``name`` is another file.

    ``folder`` is the path of its folder.
    """
    if not _PIECE.fullmatch(name):
        return None
    advice = f"Pass the folder: ckpt inspect {argument(folder)}"
    return UnreadableFile("one of the files of a checkpoint of torch.distributed.checkpoint", advice)


HEAD = 8192
"""The number of bytes at the start of a file that are examined."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCKS = (512, 1024, 2048, 4096)
"""Offsets at which the HDF5 signature may be (HDF5 File Format Specification 3.0, II.A)."""
_PROTOCOLS = (2, 3, 4, 5)
"""The pickle protocols that are stored in the second byte of a pickle."""
_LINES = re.compile(rb"(?:\([dlt]p\d+\n|c[\w.]+\n[\w.]+\n|[\]}]q\0).*\.", re.DOTALL)
"""Matches a pickle of protocol 0 or 1, in which no protocol is stored."""
_PRINTED = re.compile(rb"[\x20-\x7e]+")


class _Magic(NamedTuple):
    at: int
    magic: bytes
    what: str
    advice: str


_MAGICS = (
    _Magic(0, b"lmgg", "a GGML file of another model than Whisper", "Use the checkpoint that it was converted from."),
    *(
        _Magic(0, magic, f"a GGML file of llama.cpp ({name})", "Use the .pth file that it was converted from.")
        for magic, name in ((b"fmgg", "ggmf"), (b"tjgg", "ggjt"))
    ),
    _Magic(4, b"TFL3", "a TensorFlow Lite model", "Use the TensorFlow checkpoint that it was converted from."),
    _Magic(4, b"ET1", "an ExecuTorch program", "Use the .pth file of the model that it was exported from."),
    *(
        _Magic(0, magic, "a TensorRT engine, compiled for one GPU", "Use the checkpoint that it was built from.")
        for magic in (b"ptrt", b"ftrt")
    ),
    _Magic(
        0, b"CKPTPTCH", "a patch that ckpt wrote", "Show it with ckpt patch show, or apply it with ckpt patch apply."
    ),
    _Magic(
        0,
        b"model_checkpoint_path:",
        "the list of checkpoints of a TensorFlow run (checkpoint), without weights",
        "Pass the folder, or one of the files NAME.index in it.",
    ),
    _Magic(0, b"PAR1", "a Parquet table", "Pass a checkpoint."),
    _Magic(0, b"SQLite format 3\0", "an SQLite database", "Pass a checkpoint."),
)


def foreign(head: bytes, name: str, size: int) -> UnreadableFile | None:
    """Return a description of a file that begins with ``head`` and has ``size`` bytes; None if it is unknown."""
    for one in _MAGICS:
        if head.startswith(one.magic, one.at):
            return UnreadableFile(one.what, one.advice)
    for kind in _KINDS:
        found = kind(head, name)
        if found is not None:
            return found
    return text_kind(head, size)


def _hdf5(head: bytes, name: str) -> UnreadableFile | None:
    if not head.startswith(_HDF5[:4]) and not any(head.startswith(_HDF5, at) for at in _USER_BLOCKS):
        return None
    if head.startswith(_HDF5[:4]):
        return UnreadableFile("an HDF5 file whose bytes were changed, as by a transfer in text mode", ANEW)
    advice = f"Remove the data before it: h5unjam -i {argument(name)} -o new.h5 --delete"
    return UnreadableFile("an HDF5 file after other data (a user block)", advice)


def _described(head: bytes, name: str) -> UnreadableFile | None:
    """Return a description of a Core ML model or of the graph of a TensorFlow SavedModel; None for any other file.

    Both are protocol buffers that begin with a version number and a message; only the graph has the suffix ``.pb``.
    """
    if not re.match(rb"\x08.\x12[\x80-\xff]{0,4}[\0-\x7f]\x0a", head, re.DOTALL):
        return None
    if name.endswith(".pb"):
        return UnreadableFile(
            "the graph of a TensorFlow SavedModel", "Use the variables next to it: variables/variables."
        )
    return UnreadableFile("a Core ML model", "Use the checkpoint that it was converted from.")


def _pickle(head: bytes, name: str) -> UnreadableFile | None:
    said = len(head) > 1 and head[0] == 0x80 and head[1] in _PROTOCOLS
    if not said and not (len(head) < HEAD and _LINES.fullmatch(head)):
        return None
    advice = f"ckpt scan {argument(name)} shows what loading it would run; save its tensors with torch.save."
    return UnreadableFile("a pickle that torch did not write", advice)


def _zeros(head: bytes, name: str) -> UnreadableFile | None:
    if not head or head.strip(b"\0"):
        return None
    return UnreadableFile("a file that begins with zeros, probably an interrupted download", "Fetch it again.")


_KINDS: tuple[Callable[[bytes, str], UnreadableFile | None], ...] = (
    packed, _hdf5, _described, _pickle, _zeros,
)  # fmt: skip
