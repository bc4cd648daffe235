"""Makes a Header for tensors, numpy arrays or a module in memory, as if they were read from a file."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ConfigError
from ..formats.base.header import FilePrint, Header, no_collection
from ..formats.pickle.values import GlobalName, OpaqueResult, PickledSet, key_text
from ..storage.read._memory import MemoryFile, MemorySegment
from ..tensors.dtypes import DTYPES, contiguous_stride, reach
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape
from .torch_tensors import ArrayBytes, StorageAt, is_tensor, tensor_info

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

__all__ = [
    "FORMAT",
    "Place",
    "array_info",
    "header_in_memory",
    "holds_tensors",
    "is_array",
    "is_module",
]

# Headers of numpy arrays in memory.

Place: TypeAlias = tuple[str, int, int, bool]
"""A run of bytes in memory: device, address, number of bytes, and whether elements are big-endian."""


def is_array(value: object) -> bool:
    """Return whether a value is a numpy array or scalar, without importing numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def array_info(value: Any, storage_at: StorageAt) -> Any:
    """Return the TensorInfo of a numpy array of numbers, or the plain Python value of a numpy scalar.

    ``storage_at`` is a function that returns the Storage of the array's bytes. If the elements are not numbers, an
    OpaqueResult is returned. An array with negative strides is copied.
    """
    import numpy as np

    if isinstance(value, np.generic):
        plain = value.item()
        return plain if isinstance(plain, (bool, int, float, complex, str, bytes)) else _no_tensor(value)
    dtype = value.dtype.name
    known = dtype in DTYPES and DTYPES[dtype].bits == 8 * value.dtype.itemsize and value.dtype.names is None
    if not known or isinstance(value, np.ma.MaskedArray):
        return _no_tensor(value)
    return _strided(np.asarray(value), dtype, storage_at)


def _no_tensor(value: Any) -> OpaqueResult:
    return OpaqueResult(GlobalName("numpy", f"{type(value).__name__} of {value.dtype}"[:60]))


def _strided(array: Array, dtype: str, storage_at: StorageAt) -> TensorInfo:
    import numpy as np

    big = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    stride = _stride(array)
    if stride is None:
        array = np.ascontiguousarray(array)
        stride = contiguous_stride(array.shape)
    extent = reach(array.shape, stride)
    info_stride = None if array.flags.c_contiguous else stride
    if not extent:
        return TensorInfo(dtype, array.shape, storage_at(("", 0, 0, big), None, big_endian=big))
    flat = np.lib.stride_tricks.as_strided(array, (extent,), (array.itemsize,))
    place = "cpu", int(array.__array_interface__["data"][0]), extent * array.itemsize, big
    return TensorInfo(
        dtype, array.shape, storage_at(place, ArrayBytes(flat.view("u1")), big_endian=big), 0, info_stride
    )


def _stride(array: Array) -> tuple[int, ...] | None:
    """Return the strides of an array in elements; None if one is negative or not a multiple of the element size."""
    steps = [divmod(step, array.itemsize) for step in array.strides]
    usual = all(size == 1 or (step >= 0 and not rest) for size, (step, rest) in zip(array.shape, steps, strict=True))
    return tuple(max(step, 0) for step, _ in steps) if usual else None


# Headers of nested dicts and modules in memory.


def is_module(value: object) -> bool:
    """Return whether a value is an ``nn.Module``, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


FORMAT = "memory"
"""The format name of a checkpoint in memory."""
PACKED = "ParamsBase"
"""The end of the name of each class in which torch packs weights, such as LinearPackedParamsBase."""
_SCALARS = (bool, int, float, complex, str, bytes)


def holds_tensors(value: object) -> bool:
    """Return whether a value is a tensor, an array or a module, or a nested dict or list that contains one."""
    waiting, seen = deque([value]), set[int]()
    while waiting:
        one = waiting.popleft()
        if is_tensor(one) or is_array(one) or is_module(one):
            return True
        if isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values() if isinstance(one, Mapping) else one)
    return False


def header_in_memory(given: object, name: str) -> Header:
    """Return the Header of a dict of tensors or of a module; ``name`` is what error messages call it."""
    walk = _Walk()
    with no_collection():
        tree = walk.tree(given)
    file = MemoryFile(name, walk.pieces)
    digest = hashlib.sha256("\n".join(walk.said).encode("utf-8", "surrogatepass")).hexdigest()
    return Header(FORMAT, tree, (FilePrint("", file.size, digest),), {"": file})


class _Walk:
    """Turns nested values in memory into the ``tree`` of a Header.

    If several values share a container or a run of bytes, they also share it in the tree.
    """

    def __init__(self) -> None:
        self.pieces: list[MemorySegment] = []
        self.said: list[str] = []
        self._size = 0
        self._storages: dict[Place, Storage] = {}
        self._made: dict[int, tuple[object, Any]] = {}
        self._waiting: deque[tuple[Any, Any, Any]] = deque()

    def tree(self, given: object) -> Any:
        """Return the nested dicts and lists of ``given`` again, with a TensorInfo in place of each tensor."""
        top: dict[str, Any] = {}
        self._waiting.append((top, "", given))
        while self._waiting:
            container, key, value = self._waiting.popleft()
            container[key] = self._entry(value, key)
        return top[""]

    def _entry(self, value: Any, key: object) -> Any:
        if is_tensor(value) or is_array(value):
            info = (tensor_info if is_tensor(value) else array_info)(value, self._storage)
            if isinstance(info, TensorInfo):
                self.said.append(repr((key_text(key), info.dtype, info.shape)))
            return info
        if value is None or isinstance(value, _SCALARS):
            return _plain(value)
        return self._container(value)

    def _container(self, value: Any) -> Any:
        known = self._made.get(id(value))  # the value is kept, so that no other object can get the same id
        if known is not None:
            return known[1]
        made, entries = _emptied(value)
        self._made[id(value)] = value, made
        self._waiting.extend((made, key, one) for key, one in entries)
        return made

    def _storage(self, place: Place, piece: MemorySegment | None, *, big_endian: bool) -> Storage:
        """Return the Storage of the bytes at ``place`` in memory; equal places get the same object.

        ``piece`` reads these bytes; it is None if there are no bytes.
        """
        if piece is None:
            return Storage("", self._size, 0)
        known = self._storages.get(place)
        if known is None:
            known = self._storages[place] = Storage("", self._size, piece.nbytes, big_endian=big_endian)
            self._size += piece.nbytes
            self.pieces.append(piece)
        return known


def _emptied(value: Any) -> tuple[Any, Iterable[tuple[Any, Any]]]:
    """Return an empty container for the content of ``value``, and the (key, item) pairs to put into the container.

    For a module, the content is its ``state_dict()``; for packed weights, their state and class. For a value that is
    not a container, an OpaqueResult and no items are returned. Raises what ``_check_unpacked`` raises.
    """
    if is_module(value):
        _check_unpacked(value)
        value = value.state_dict(keep_vars=True)
    if _is_packed(value):
        value = value.__getstate__()
    if isinstance(value, Mapping):
        keys = [_plain(key) for key in value]
        return dict.fromkeys(keys), zip(keys, value.values(), strict=True)
    if isinstance(value, (list, tuple)):
        if type(value) is not list and all(one is None or isinstance(one, _SCALARS) for one in value):
            return tuple(map(_plain, value)), ()
        return [None] * len(value), enumerate(value)
    if isinstance(value, (set, frozenset)):
        return PickledSet([None] * len(value)), enumerate(value)
    return OpaqueResult(GlobalName(type(value).__module__, type(value).__qualname__)), ()


def _check_unpacked(module: Any) -> None:
    """Raise ConfigError if a module, or one of its submodules, is TorchScript with packed weights.

    Such weights are only in the file that ``torch.jit.save`` writes, not in ``state_dict()``.
    """
    scripted = sys.modules["torch"].jit.ScriptModule
    for name, one in module.named_modules():
        kinds = one._c._type().containedTypes() if isinstance(one, scripted) else ()
        if any(str(kind.annotation_str).endswith(PACKED) for kind in kinds):
            whole = f"<{type(module).__name__}>"
            where = f"the module {escape(name)} of {whole}" if name else whole
            raise ConfigError(
                f"{where} is TorchScript with packed weights, which are not in its state_dict().",
                hint="Save the module with torch.jit.save, and give the path of the file.",
            )


def _is_packed(value: Any) -> bool:
    """Return whether a value is an object of a C++ class of torch that can be saved, such as packed weights."""
    torch = sys.modules.get("torch")
    is_object = torch is not None and isinstance(value, torch.ScriptObject)
    return is_object and value._has_method("__getstate__")


def _plain(value: Any) -> Any:
    """Return a number or string of a subclass (such as an IntEnum) as its base type; return other values unchanged."""
    kind = next((kind for kind in _SCALARS if isinstance(value, kind)), None)
    return value if kind is None or type(value) is kind else kind(value)
