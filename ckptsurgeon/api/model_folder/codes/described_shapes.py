"""Notes on stored shapes, block sizes and zero points of quantised weights that contradict codes or settings."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ....checkpoint.checkpoint import Checkpoint
from ....checkpoint.values.samples import first_and_last_rows
from ....checkpoint.values.zero_points import UNLIKE_OTHERS
from ....formats.base.limits import ELEMENTS
from ....storage.read.uri import scheme_of
from ....tensors.bitsandbytes_values import STATE
from ....tensors.quantised.encoding import QuantisedTensor
from ....tensors.quantised.methods import family
from ....tensors.quantised.settings import gptq_format
from ....util.note_kind import NoteKind
from ....util.notes import Note
from ....util.text import NUMBER_IN_KEY, brief_repr, count, escape, listing
from .logical_tensors import columns_of, whole_shape

__all__ = ["described_shape_notes"]

SHAPE, ZEROS = ".weight_shape", ".qzeros"
INTEGERS = ("int64", "int32")
"""The dtypes that a tensor ``weight_shape`` may have."""
MOST = 2000
"""The largest number of weights whose stored shape is read. A model of 70 billion parameters has 560 such weights."""
DIGITS = 60
"""A note shows at most this many characters of a stored number."""
FORMAT_FIELDS = ("checkpoint_format", "format", "packing_format")
"""The fields of the settings that may name the format of zero points."""
VALUE_BYTES = 4096
"""A tensor with more bytes than this is not read as a stored shape."""


class _Fault(NamedTuple):
    """What is wrong with a stored field of a weight: the field's name, the rest of the text, and the kind of the note.

    The kind is BROKEN_CODES if a shape or block size is wrong: then no program can decode the weight.
    """

    field: str
    text: str
    kind: NoteKind = NoteKind.BROKEN_CODES


def described_shape_notes(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> list[Note]:
    """Return notes on stored shapes, block sizes and zero points of quantised weights that contradict other values.

    They are compared with the codes, the number of scales, the settings, ``config``, and the shapes of the same weight
    in most layers.

    ``config`` is the model's configuration, if there is one. Its ``hidden_size`` and ``intermediate_size`` are
    dimensions of some weights.

    bitsandbytes stores a ``quant_state`` (JSON in a tensor) with the shape of a weight and its block size, which is the
    number of values that share a scale. compressed-tensors stores a ``weight_shape``. In GPTQ, the zero points of
    symmetric weights depend on the version of the format. All these values are in small tensors that are far apart in
    the files. So they are read only from local files, and only the first ``MOST`` weights are compared.
    """
    if scheme_of(checkpoint.path):
        return []
    checkpoint = checkpoint.stored or checkpoint
    found: dict[_Fault, list[str]] = {}
    codes = checkpoint.codes
    forms = {form for form, one in codes.by_form().items() if one.codes and any(map(_describes, one.parts))}
    described = (one for one in codes.tensors if one.form in forms) if forms else ()
    some = [*islice(described, MOST)]
    for one in some:
        for fault in (
            *_of_state(checkpoint, one, config or {}),
            *_of_shape(checkpoint, one, config or {}),
            *_of_zeros(checkpoint, one),
        ):
            found.setdefault(fault, []).append(one.codes)
    # there is already a note on weights that have another version than most weights
    if any(UNLIKE_OTHERS in note for note in checkpoint.quantisation_notes):
        found = {fault: keys for fault, keys in found.items() if fault.field != "qzeros" or 2 * len(keys) > len(some)}
    for key, fault in _unlike_shapes(checkpoint, some, {key for keys in found.values() for key in keys}):
        found.setdefault(fault, []).append(key)
    return [Note(fault.kind, f"the {fault.field} of {listing(keys, 3)} {fault.text}") for fault, keys in found.items()]


def _describes(ending: str) -> bool:
    return ending in (SHAPE, ZEROS) or ending.startswith(STATE)


def _of_state(checkpoint: Checkpoint, one: QuantisedTensor, config: Mapping[str, Any]) -> Iterator[_Fault]:
    state = checkpoint.quant_states.get(one.name, {})  # an unreadable state is reported when the weight is decoded
    shape, block = state.get("shape"), state.get("blocksize")
    codes, scales = 2 * checkpoint[one.codes].nbytes, one.parts.get(".absmax")
    if isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape):
        number = math.prod(shape)
        if number + number % 2 != codes:
            # Python refuses to print more than 4,300 digits
            values = escape(f"{number:,}", DIGITS) if number <= ELEMENTS else "too many"
            said = f"which is {values} values, but there are {codes:,} codes"
            yield _Fault("quant_state", f"gives the shape {brief_repr(shape)}, {said}")
        elif len(expected := whole_shape(one.name, (number,), config)) > 1 and shape != [*expected]:
            width = f"hidden_size is {config['hidden_size']}"
            said = f"but it must be {[*expected]}: {width} in config.json"
            yield _Fault("quant_state", f"gives the shape {brief_repr(shape)}, {said}")
    if type(block) is int and block > 0 and scales is not None:
        have = math.prod(checkpoint[scales].shape)
        if have not in (-(-codes // block), -(-(codes - 1) // block)):
            size = escape(str(block), DIGITS)
            said = f"but there are {have:,} scales for {codes:,} codes"
            yield _Fault("quant_state", f"gives a block size of {size}, {said}")
    nested, outer = state.get("nested_blocksize"), one.parts.get(".nested_absmax")
    if type(nested) is int and nested > 0 and scales is not None and outer is not None:
        inner, have = (math.prod(checkpoint[key].shape) for key in (scales, outer))
        if have != -(-inner // nested):
            size = f"{escape(str(nested), DIGITS)} for the scales"
            said = f"but the absmax has {inner:,} values, the nested_absmax {have:,}"
            yield _Fault("quant_state", f"gives a block size of {size}, {said}")


def _of_shape(checkpoint: Checkpoint, one: QuantisedTensor, config: Mapping[str, Any]) -> Iterator[_Fault]:
    shape, codes = _stored_shape(checkpoint, one), checkpoint[one.codes].shape
    if len(shape) != 2 or len(codes) != 2:
        return
    rows, columns = shape
    width, field = columns_of(one.name, config)
    # codes have 1 to 8 bits each, and are packed in 32-bit integers
    if rows != codes[0] or not 4 * (codes[1] - 1) < columns <= 32 * codes[1]:
        yield _Fault("weight_shape", f"is [{rows}, {columns}], but the codes have the shape {list(codes)}")
    elif width not in (0, columns):
        width_text = escape(str(width), DIGITS)
        said = f"{field} is {width_text} in config.json"
        yield _Fault("weight_shape", f"is [{rows}, {columns}], but it must be [{rows}, {width_text}]: {said}")


def _unlike_shapes(
    checkpoint: Checkpoint, described: Sequence[QuantisedTensor], said: Collection[str]
) -> Iterator[tuple[str, _Fault]]:
    """Yield (key of the codes, fault) for each ``weight_shape`` that differs from those of most other layers.

    Two weights are compared only if they have the same name in different layers, and their parts have the same dtypes
    and shapes. The keys in ``said`` are left out, because there are already notes on them.
    """
    alike: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {}
    for one in described:
        if one.codes not in said and (shape := _stored_shape(checkpoint, one)):
            alike.setdefault((NUMBER_IN_KEY.sub("#", one.codes), one.form), {})[one.codes] = shape
    for shapes in alike.values():
        usual, number = Counter(shapes.values()).most_common(1)[0]
        if 2 * number > len(shapes):
            for key in [key for key, shape in shapes.items() if shape != usual]:
                like = f"that of {count(number, 'similar tensor')} is {[*usual]}"
                yield key, _Fault("weight_shape", f"is {[*shapes[key]]}, but {like}")


def _stored_shape(checkpoint: Checkpoint, one: QuantisedTensor) -> tuple[int, ...]:
    """Return the ``weight_shape`` of a tensor; () if it has none, or it cannot be read."""
    key = one.parts.get(SHAPE, "")
    dtype = checkpoint[key].dtype if key else ""
    data = _small_value(checkpoint, key, dtype) if dtype in INTEGERS else b""
    return struct.unpack(f"<{len(data) // 8}q" if dtype == "int64" else f"<{len(data) // 4}i", data)


def _of_zeros(checkpoint: Checkpoint, one: QuantisedTensor) -> Iterator[_Fault]:
    """Yield a fault if zero points of a symmetric weight contradict the GPTQ version in the settings.

    Version 1 stores the middle of the range of codes minus 1 (7 for 4 bits). Version 2 ("gptq_v2") stores the middle.
    """
    settings, key = checkpoint.quantisation, one.parts.get(ZEROS, "")
    bits: Any = settings.get("bits")
    info = checkpoint[key] if key and settings.get("sym") is True and bits in (4, 8) else None
    if family(one.method) != "GPTQ" or info is None or info.storage is None or info.dtype != "int32" or not info.numel:
        return
    file = checkpoint.open_files()[info.storage.file]
    data = b"".join(
        bytes(file.read(info.storage.offset + one.offset, one.nbytes)) for one in first_and_last_rows(info, VALUE_BYTES)
    )
    version, middle = 2 if "v2" in gptq_format(settings) else 1, 1 << (bits - 1)
    other = middle - 1 if version == 2 else middle
    if data == sum(other << at for at in range(0, 32, bits)).to_bytes(4, "little") * (len(data) // 4):
        said = next((f"{escape(str(settings[name]))} ({name})" for name in FORMAT_FIELDS if settings.get(name)), "")
        says = f"says {said}" if said else "has no checkpoint_format"
        stores = f"is {other} for each weight, as version {3 - version} of GPTQ stores symmetric weights"
        said = f"but the quantization_config {says}, so that they are read as version {version}"
        yield _Fault("qzeros", f"{stores}, {said}", NoteKind.QUANTISATION)


def _small_value(checkpoint: Checkpoint, key: str, dtype: str) -> bytes:
    """Return the bytes of a small tensor; b"" if the tensor is missing, too large or of another dtype."""
    info = checkpoint[key] if key else None
    if info is None or info.storage is None or info.nbytes > VALUE_BYTES or info.dtype != dtype:
        return b""
    return bytes(checkpoint.open_files()[info.storage.file].read(info.storage.offset + info.offset, info.nbytes))
