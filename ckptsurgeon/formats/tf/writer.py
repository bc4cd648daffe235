"""Writes TensorFlow's V2 checkpoints into folders: an index, data files, and the file ``checkpoint``.

``tf.train.load_checkpoint`` and ``tf.compat.v1.train.Saver`` read these folders. The dots of a key become slashes: the
key ``layer_1.bias`` becomes the variable ``layer_1/bias``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain

from ...errors import OutputError
from ...storage.crc32c import crc32c, masked
from ...util.text import count, escape
from ..base import limits
from ..base.header import ExtraEntries, IndexFile, OutputLayout, OutTensor, ReadWritten
from ..base.protobuf import field, field32
from .bundle import DTYPES
from .coqui import fresh_state, is_network
from .folder import LAST, STATES, named_in, place_of
from .leveldb_writer import table

__all__ = ["TensorFlowWriter"]

_NAME = "model"
_FILE = re.compile(rf"{_NAME}(\.index|\.data-\d{{5,}}-of-\d{{5,}})")
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
_VERSION = field(3, field(1, 1))
"""The last field of a BundleHeaderProto: version 1 of the writer."""
_BLOCK = 1 << 20


class _DataFile:
    """The layout of one data file: the tensors one after another, then the training state that Coqui STT needs.

    ``state`` has (tensor, offset) of this training state.
    """

    def __init__(self, tensors: Sequence[OutTensor]) -> None:
        self.slots: dict[str, tuple[int, int]] = {}
        self.state: list[tuple[OutTensor, int]] = []
        self._values: list[bytes] = []
        self.size = 0
        for tensor in tensors:
            self.slots[tensor.key] = self._place(tensor), tensor.nbytes
        for tensor, value in fresh_state(tensors):
            self.state.append((tensor, self._place(tensor)))
            self._values.append(value)

    def _place(self, tensor: OutTensor) -> int:
        offset, self.size = self.size, self.size + tensor.nbytes
        return offset

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the training state, as (offset, bytes) in order."""
        for (tensor, offset), value in zip(self.state, self._values, strict=True):
            if value:
                yield offset, value
            for done in range(0, 0 if value else tensor.nbytes, _BLOCK):
                yield offset + done, bytes(min(_BLOCK, tensor.nbytes - done))


class _Bundle:
    """Names the files of a TensorFlow bundle, and builds its index, which has checksums of the written tensors."""

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` data files."""
        return [f"{_NAME}.data-{i:05d}-of-{number:05d}" for i in range(number)]

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return {file name: function that returns the bytes} of the index and of the file ``checkpoint``.

        Raises OutputError if a key would be read back as another key.
        """
        tensors = [tensor for tensors, _ in files.values() for tensor in tensors]
        added = [tensor for _, layout in files.values() for tensor, _ in _placed(layout).state]
        _check_names(tensors, added)
        _check_readable([*tensors, *added])
        if len(files) > 1 and is_network({tensor.key for tensor in tensors}):
            raise OutputError(
                f"Coqui STT's network and training state must be in one data file, but would be in {len(files)}.",
                hint="Write one file, without --max-shard-size.",
            )
        state = f'model_checkpoint_path: "{_NAME}"\nall_model_checkpoint_paths: "{_NAME}"\n'
        return {f"{_NAME}.index": lambda read: _index(files, read), LAST: lambda _: state.encode()}

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return those of ``present``, the names of a folder's files, that belong to a checkpoint of this format.

        A file that says which checkpoint to read (``best_dev_checkpoint``, ``checkpoint``) is included even if it names
        another checkpoint: otherwise, that checkpoint would be read instead of the new one. ``read`` is a function that
        returns the bytes of a file.
        """
        found = {name for name in present if _FILE.fullmatch(name)}
        for name in STATES:
            with suppress(OSError):
                if name in present and named_in(read(name)):
                    found.add(name)
        return found


def _placed(layout: OutputLayout) -> _DataFile:
    assert isinstance(layout, _DataFile)  # TensorFlowWriter made it
    return layout


def _check_names(tensors: Sequence[OutTensor], added: Sequence[OutTensor]) -> None:
    """Raise OutputError if a key, written as the name of a variable, would be read back as another key.

    Also raised for the empty key, and for the key of a tensor in ``added``, Coqui STT's training state.
    """
    taken = {tensor.key for tensor in added}
    names = {tensor.key: _variable(tensor.key) for tensor in tensors}
    all_names = set(names.values())
    for tensor in tensors:
        found = place_of(names[tensor.key], tensor.shape, all_names)
        if not tensor.key or tensor.key in taken or found != ("model", tensor.key):
            why = f"would be read as {escape('.'.join(found))} from" if tensor.key else "cannot be stored in"
            why = "belongs to Coqui STT's training state in" if tensor.key in taken else why
            raise OutputError(
                f"{f'the key {escape(tensor.key)}' if tensor.key else 'the empty key'} {why} a TensorFlow checkpoint.",
                hint="Rename the tensor with ckpt rename --map, or leave it out with ckpt filter --exclude.",
            )


def _check_readable(tensors: Sequence[OutTensor]) -> None:
    """Raise OutputError if the index would be too large for ckptsurgeon itself to read."""
    keys = sum(len(_name(tensor)) for tensor in tensors)
    entries = sum(len(_entry(tensor, limits.SHARDS, 1 << 62, 0)) for tensor in tensors)
    names = keys + keys // 4  # the index block repeats the last name of each block
    if names > limits.PATH_CHARACTERS or entries > limits.TABLE_MESSAGES or names + 2 * entries > limits.TABLE_BYTES:
        raise OutputError(
            f"{count(len(tensors), 'tensor')} with names of {keys} bytes are too many for tensorflow: "
            "the index would be too large for ckpt to read.",
            hint="Write safetensors: -o FILE.safetensors.",
        )


def _name(tensor: OutTensor) -> bytes:
    return _variable(tensor.key).encode("utf-8", "surrogatepass")


def _variable(key: str) -> str:
    return key.replace(".", "/")


def _index(files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]], read: ReadWritten) -> bytes:
    """Return the bytes of the index: a table with the header, then one entry per tensor, sorted by name.

    ``read`` is a function that returns bytes of a written file; the checksums are computed from these bytes.
    """
    rows = {b"": field(1, len(files)) + _VERSION}
    for shard, (name, (tensors, layout)) in enumerate(files.items()):
        placed = ((tensor, layout.slots[tensor.key][0]) for tensor in tensors)
        for tensor, offset in chain(placed, _placed(layout).state):
            rows[_name(tensor)] = _entry(tensor, shard, offset, _checksum(name, offset, tensor.nbytes, read))
    return table(sorted(rows.items()))


def _checksum(name: str, offset: int, nbytes: int, read: ReadWritten) -> int:
    """Return the CRC-32C of the ``nbytes`` bytes from ``offset`` on in the file ``name``."""
    crc = 0
    for done in range(0, nbytes, _BLOCK):
        crc = crc32c(read(name, offset + done, min(_BLOCK, nbytes - done)), crc)
    return crc


def _entry(tensor: OutTensor, shard: int, offset: int, crc: int) -> bytes:
    """Return the bytes of a BundleEntryProto: dtype, shape, data file, offset, size and CRC-32C of a tensor."""
    sizes = b"".join(field(2, field(1, size)) for size in tensor.shape)
    place = field(3, shard) + field(4, offset) + field(5, tensor.nbytes)
    return field(1, _NUMBERS[tensor.dtype]) + field(2, sizes) + place + field32(6, masked(crc))


class TensorFlowWriter:
    """Writes folders that TensorFlow loads."""

    name = "tensorflow"
    sharding = _Bundle()
    suffixes: tuple[str, ...] = ()
    carries = False
    shares = False
    most = limits.TENSORS // 4
    dtypes = frozenset(_NUMBERS)

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> _DataFile:
        """Return the layout of a data file; ``metadata`` is stored only in the recipe file in the same folder."""
        return _DataFile(tensors)
