"""Reads safetensors (https://huggingface.co/docs/safetensors): an 8-byte length, a JSON header, the tensors.

The checks are at least as strict as in the reference implementation (safetensors/src/tensor.rs): the ``rule`` of an
error is the reference implementation's name of this error. One check is stricter: a duplicate key is an error here,
while the reference implementation uses the last one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import FormatError
from ..storage.read.base import File, Source
from ..storage.replaced_header import is_replaced
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape
from ._safetensors_entry import FIELDS, EntryError, tensor_of
from ._safetensors_layout import SafetensorsWriter, take_recipe
from .base import limits
from .base.header import UNSEALED, FilePrint, Header, digest_outside, seal_of
from .base.untrusted import parse_json, unique_keys

__all__ = ["FORMAT"]

_DEEPEST = 127
"""How many levels of nested arrays and objects the reference implementation accepts (serde_json)."""
_AGAIN = "Fetch or save this file again."
_TRUNCATED = f"{_AGAIN} ckpt check shows how much of it is missing, and which tensors are lost."
"""The hint for a file that is shorter than its header requires."""


class _Safetensors:
    name = "safetensors"
    magic: tuple[bytes, ...] = ()
    writer = SafetensorsWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with a plausible header length and the opening brace of a JSON object."""
        if not isinstance(source, File) or len(head) < 9:
            return False
        if is_replaced(head):
            return True
        length = int.from_bytes(head[:8], "little")
        return head[8:9] == b"{" and length <= max(source.size, limits.JSON_HEADER_BYTES)

    def read(self, source: Source, name: str = "") -> Header:
        """Check the header of the file and return it; raises FormatError with the name of the violated rule."""
        assert isinstance(source, File)
        raw = _raw_header(source)
        entries = _parse(source, raw)
        metadata = _metadata(source, entries.pop("__metadata__", None))
        recipe = take_recipe(metadata)
        start = 8 + len(raw)
        stored = Storage(name, start, source.size - start, name=source.name)
        tensors = _tensors(source, entries, stored)
        digest = hashlib.sha256(len(raw).to_bytes(8, "little") + raw).hexdigest()
        return Header(
            format=self.name,
            tree=tensors,
            files=(FilePrint.of(source, digest, name),),
            handles={name: source},
            metadata=metadata,
            recipe=recipe,
            frame=lambda: _frame(source, start, recipe or ""),
        )


def _fail(file: File, rule: str, why: str, hint: str = "") -> FormatError:
    return FormatError(f"{escape(file.uri)} is not a valid safetensors file: {why}.", hint=hint, rule=rule)


def _raw_header(file: File) -> bytes:
    if file.size < 8:
        raise _fail(file, "HeaderTooSmall", f"the file has only {file.size} bytes")
    length = int.from_bytes(file.read(0, 8), "little")
    if is_replaced(file.read(0, min(9, file.size))):
        raise FormatError(
            f"{escape(file.uri)} cannot be read: its header is being replaced, or ckpt rename --in-place was "
            "interrupted.",
            hint="If the rename was interrupted, ckpt check restores the header.",
            rule="replaced header",
        )
    if length > limits.JSON_HEADER_BYTES:
        raise _fail(file, "HeaderTooLarge", f"its header has {length} bytes, more than {limits.JSON_HEADER_BYTES}")
    if length > file.size - 8:
        raise _fail(
            file,
            "InvalidHeaderLength",
            f"its header has {length} bytes, but the file only {file.size}: it is truncated",
            _AGAIN,
        )
    return file.read(8, length)


def _parse(file: File, raw: bytes) -> dict[str, Any]:
    try:
        entries = parse_json(raw, strict=True)
        if not _has_all_strings(entries, raw):
            entries = parse_json(raw, unique_keys, strict=True)
    except ValueError as error:
        raise _fail(file, "InvalidHeaderDeserialization", f"its header is not valid JSON: {error}") from None
    if not raw.startswith(b"{") or not isinstance(entries, dict):
        raise _fail(file, "InvalidHeaderStart", "its header is not a JSON object")
    if b"\\u" in raw:
        _check_text(file, [*entries, *_metadata(file, entries.get("__metadata__")).items()])
    for entry in entries.values():
        if isinstance(entry, dict) and len(entry) > len(FIELDS):
            _check_unknown(file, entry, 2)
    return entries


def _has_all_strings(entries: Any, raw: bytes) -> bool:
    """Return whether the header certainly has no duplicate keys; ``entries`` is its parsed JSON, ``raw`` its text.

    ``json`` keeps only the last of duplicate keys, so fewer strings are parsed than the text contains. This is found by
    counting the quotes in the text, which is faster than looking at the keys of each tensor. An entry of a tensor has
    four strings besides its key (three keys and a dtype); metadata are pairs of strings. If the text has escapes, or
    values of other types, the result is False.
    """
    if not isinstance(entries, dict) or b"\\" in raw or set(map(type, entries.values())) != {dict}:
        return False
    metadata = entries.get("__metadata__", {})
    tensors = len(entries) - ("__metadata__" in entries)
    return raw.count(b'"') == 2 * (len(entries) + 4 * tensors + 2 * len(metadata))


def _check_unknown(file: File, value: Any, depth: int) -> None:
    """Raise FormatError if ``value``, of a field that is not in ``FIELDS``, is nested too deeply or not valid Unicode.

    The reference implementation refuses such values, too. ``depth`` is how deeply the value is nested in the header.
    """
    if isinstance(value, str):
        _check_text(file, [value])
    elif isinstance(value, (dict, list)):
        if depth > _DEEPEST:
            raise _fail(file, "InvalidHeaderDeserialization", f"its header is nested more than {_DEEPEST} levels deep")
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_unknown(file, inner, depth + 1)


def _check_text(file: File, texts: Iterable[str | tuple[str, str]]) -> None:
    """Raise FormatError if a string has half of a surrogate pair: JSON can write it as an escape, but UTF-8 cannot."""
    for text in texts:
        try:
            "".join(text).encode()
        except UnicodeEncodeError:
            raise _fail(
                file,
                "InvalidHeaderDeserialization",
                f"the string {escape(''.join(text), 40)} has half of a surrogate pair",
            ) from None


def _metadata(file: File, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _fail(file, "InvalidHeaderDeserialization", "its metadata is not a map from strings to strings")
    return metadata


def _tensors(file: File, entries: dict[str, Any], stored: Storage) -> dict[str, TensorInfo]:
    """Return the headers of all tensors, made from ``entries``, their parsed JSON; removes all entries, to save memory.

    Raises FormatError if an entry is not valid, or if the tensors do not fill the bytes after the header exactly.
    """
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int, str]] = []
    for key in list(entries):
        entry = entries.pop(key)  # frees it: an entry takes more memory than its TensorInfo
        key = sys.intern(key)  # several open models have the same keys
        info = tensors[key] = _tensor(file, key, entry, stored)
        info.shape = shapes.setdefault(info.shape, info.shape)
        places.append((*entry["data_offsets"], key))
    _check_cover(file, places, stored.nbytes)
    return tensors


def _tensor(file: File, key: str, entry: Any, stored: Storage) -> TensorInfo:
    """Return the header of one tensor; raises FormatError if it is not valid, or if its bytes are not in the file."""
    try:
        info = tensor_of(entry, stored)
    except EntryError as error:
        raise _fail(file, error.rule, f"the tensor {escape(key)} {error.why}") from None
    if entry["data_offsets"][1] > stored.nbytes:
        why = f"the tensor {escape(key)} ends beyond the end of the file, which is truncated"
        raise _fail(file, "InvalidOffset", why, _TRUNCATED)
    return info


def _check_cover(file: File, places: Sequence[tuple[int, int, str]], size: int) -> None:
    """Raise FormatError unless each of the ``size`` bytes after the header belongs to exactly one tensor.

    ``places`` has (begin, end, key) of each tensor, in bytes after the header.
    """
    at = 0
    for begin, end, key in sorted(places):
        if begin != at:
            why = "overlaps another tensor" if begin < at else "has a gap in front of it"
            raise _fail(file, "InvalidOffset", f"the tensor {escape(key)} {why}")
        at = end
    if at != size:
        start = file.size - size
        raise _fail(
            file,
            "MetadataIncompleteBuffer",
            f"its tensors end at byte {start + at}, but the file has {file.size} bytes",
        )


def _frame(file: File, start: int, recipe: str) -> str:
    sealed = seal_of(recipe).encode()
    at = file.read(8, start - 8).find(sealed) if sealed else -1  # read again: it may be too large to keep in memory
    patches = [(8 + at, UNSEALED.encode())] if at >= 0 else []
    return digest_outside(file, [(start, file.size)], patches)


FORMAT = _Safetensors()
