"""Writes pickles of contiguous tensors and of state dicts in protocol 2, as ``torch.save`` would."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...tensors.dtypes import DTYPES, contiguous_stride
from ..base.header import ChannelNumbers, ExtraEntries, OutTensor, StoredQuantiser
from ..pickle.torch import STORAGE_DTYPES

__all__ = ["PARAMETERS", "PickleWriter", "parameters_of", "state_dict_pickle", "tensor_pickle"]

_STORAGE_OF = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}


PARAMETERS = (".scales", ".zero_points")
"""The endings of the records with the scales and zero points of the channels of a quantised tensor."""


def parameters_of(tensor: OutTensor) -> Iterator[tuple[str, ChannelNumbers]]:
    """Yield (ending of a record's name, numbers in the record) for the scales and zero points of a quantised tensor.

    Only a tensor that is quantised by channel has them; the scales and the zero points have a record each.
    """
    if tensor.quantiser is not None:
        for ending, numbers in zip(PARAMETERS, (tensor.quantiser.scale, tensor.quantiser.zero), strict=True):
            if isinstance(numbers, ChannelNumbers):
                yield ending, numbers


class PickleWriter:
    """Appends the instructions of a pickle to ``out``; frequent values are written once, then loaded from the memo."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self._memo: dict[object, int] = {}

    def text(self, value: str) -> None:
        """Append the instruction that makes a string."""
        raw = value.encode("utf-8", "surrogatepass")
        self.out += b"X" + struct.pack("<I", len(raw)) + raw

    def shared(self, code: bytes) -> None:
        """Append the instructions ``code``; after the first time, append one that loads their result from the memo."""
        if not self.fetched(code):
            self.out += code
            self.kept(code)

    def fetched(self, what: object) -> bool:
        """Append the instruction that loads from the memo the value that was stored by ``kept(what)``.

        Return whether there is such a value; if not, nothing is appended.
        """
        index = self._memo.get(what)
        if index is None:
            return False
        self.out += b"j" + struct.pack("<I", index) if index > 255 else b"h" + bytes([index])
        return True

    def kept(self, what: object) -> None:
        """Append the instruction that stores the last value in the memo, so that ``fetched(what)`` can load it."""
        index = self._memo[what] = len(self._memo)
        self.out += b"r" + struct.pack("<I", index) if index > 255 else b"q" + bytes([index])

    def name(self, module: str, name: str) -> None:
        """Append the name of a class or function, such as ``torch._utils._rebuild_tensor_v2``."""
        self.shared(f"c{module}\n{name}\n".encode())

    def word(self, value: str) -> None:
        """Append a string that occurs often; from the second time on it is loaded from the memo."""
        raw = value.encode()
        self.shared(b"X" + struct.pack("<I", len(raw)) + raw)

    def integer(self, value: int) -> None:
        """Append an integer."""
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 65536:
            self.out += b"M" + struct.pack("<H", value)
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) + raw

    def integers(self, values: Sequence[int]) -> None:
        """Append a tuple of integers."""
        if not values:
            self.out += b")"
            return
        self.out += b"(" if len(values) > 3 else b""
        for value in values:
            self.integer(value)
        self.out += b"t" if len(values) > 3 else bytes([0x84 + len(values)])

    def tensor(self, tensor: OutTensor, record: str) -> None:
        """Append a tensor whose bytes are in the record ``data/<record>`` of the archive.

        If the tensor is quantised, its scales and zero points are in records named ``record`` plus an ending of
        ``PARAMETERS``.
        """
        storage, quantiser = _STORAGE_OF.get(tensor.dtype), tensor.quantiser
        plain = "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3"
        self.name("torch._utils", plain if quantiser is None else "_rebuild_qtensor")
        self.out += b"(("
        self.word("storage")
        self.name("torch" if storage else "torch.storage", storage or "UntypedStorage")
        self.text(record)
        self.word("cpu")
        self.integer(tensor.nbytes // DTYPES[tensor.dtype].itemsize if storage else tensor.nbytes)
        self.out += b"tQK\x00"
        self.integers(tensor.shape)
        self.integers(contiguous_stride(tensor.shape))
        if quantiser is not None:
            self._parameters(tensor, quantiser, record)
        self.out += b"\x89"
        self.name("collections", "OrderedDict")
        self.out += b")R"
        if not storage:
            self.name("torch", tensor.dtype)
        self.out += b"tR"

    def _parameters(self, tensor: OutTensor, quantiser: StoredQuantiser, record: str) -> None:
        """Append the tuple with the parameters of a quantised tensor, as ``torch._utils._rebuild_qtensor`` takes it."""
        channels = dict(parameters_of(tensor))
        self.out += b"("
        self.name("torch", quantiser.scheme)
        for ending, number in zip(PARAMETERS, (quantiser.scale, quantiser.zero), strict=True):
            if ending not in channels:
                self.plain(number)
                continue
            dtype, data = channels[ending]
            self.tensor(OutTensor("", dtype, (len(data) // DTYPES[dtype].itemsize,), len(data)), f"{record}{ending}")
        if quantiser.axis is not None:
            self.integer(quantiser.axis)
        self.out += b"t"

    def plain(self, value: Any) -> None:
        """Append plain data: None, numbers, strings, lists, tuples, dicts."""
        if value is None or isinstance(value, bool):
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self.text(value)
        elif isinstance(value, dict):
            self.out += b"}("
            for key, entry in value.items():
                self.plain(key)
                self.plain(entry)
            self.out += b"u"
        else:
            self.out += b"](" if isinstance(value, list) else b"("
            for entry in value:
                self.plain(entry)
            self.out += b"e" if isinstance(value, list) else b"t"


def _write_tensors(writer: PickleWriter, places: Mapping[str | int, Any], records: Mapping[str, str]) -> None:
    """Append the keys and values of a dict; ``places`` is this dict, and a value is a tensor or another such dict."""
    for key, value in places.items():
        writer.plain(key)
        if isinstance(value, OutTensor):
            writer.tensor(value, records[value.key])
        else:
            writer.out += b"}("
            _write_tensors(writer, value, records)
            writer.out += b"u"


def tensor_pickle(tensor: OutTensor, record: str) -> bytes:
    """Return the pickle of a single tensor whose bytes are in the record ``data/<record>`` of the archive."""
    writer = PickleWriter()
    writer.tensor(tensor, record)
    return bytes(writer.out + b".")


def state_dict_pickle(
    tensors: Sequence[OutTensor], records: Mapping[str, str], beside: ExtraEntries | None = None
) -> bytes:
    """Return the pickle of a state dict with these tensors, and of the other entries of the file (``beside``).

    ``records`` has, for each key, the name of the record with the bytes of the tensor.
    """
    writer, beside = PickleWriter(), beside or ExtraEntries()
    for name in beside.path:
        writer.out += b"}("
        writer.text(name)
    writer.out += b"}("
    places: dict[str | int, Any] = {}
    for tensor in tensors:
        place = beside.nested.get(tensor.key, (tensor.key,))
        inside = places
        for one in place[:-1]:
            inside = inside.setdefault(one, {})
        inside[place[-1]] = tensor
    _write_tensors(writer, places, records)
    for entries in reversed(beside.levels):
        for name, value in entries.items():
            writer.text(name)
            writer.plain(value)
        writer.out += b"u"
    writer.out += b"."
    return bytes(writer.out)
