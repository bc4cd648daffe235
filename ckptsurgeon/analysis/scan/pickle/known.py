"""Lists the imports that only create data and tensors, each by its exact module and name.

These are the imports that ckptsurgeon's own reader supports (``torch.py``, ``numpy.py`` and ``values.py`` in
``formats/pickle``, ``formats/torch_dcp.py``). Everything else is unknown code; there is no list of bad names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ....formats.pickle.numpy import ML_DTYPES
from ....formats.pickle.torch import STORAGE_DTYPES
from ....tensors.dtypes import DTYPES
from ..findings import Verdict
from .values import Check

__all__ = ["CHECKS", "KNOWN"]

_BUILTINS = (
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "range",
    "set",
    "str",
    "tuple",
)
"""Types of plain data. Old protocols call them to make sets and byte strings; a ``defaultdict`` has one as factory."""

_COLLECTIONS = ("Counter", "OrderedDict", "defaultdict")

_REBUILD = (
    "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy", "_rebuild_meta_tensor_no_storage",
    "_rebuild_nested_tensor", "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_qtensor",
    "_rebuild_sparse_tensor", "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3",
    "_rebuild_wrapper_subclass", "_rebuild_xla_tensor",
)  # fmt: skip
"""Names in ``torch._utils``."""

_TORCH = (
    "Size", "Tensor", "device",
    "per_channel_affine", "per_channel_affine_float_qparams", "per_channel_symmetric", "per_tensor_affine",
    "per_tensor_symmetric",
    "half", "float", "double", "long", "int", "short", "cfloat", "cdouble", "chalf",
)  # fmt: skip
"""Names in ``torch``, in addition to its dtypes and storages."""

_OTHERS = {
    "torch._tensor": ("_rebuild_from_type", "_rebuild_from_type_v2"),
    "torch.nn.parameter": ("Buffer", "Parameter"),
    "torch.serialization": ("_get_layout",),
    "torch.storage": ("TypedStorage", "UntypedStorage"),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    # the folder that torch.distributed.checkpoint wrote to; the second module is used by Python 3.13
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core._internal": ("_reconstruct",),
    "numpy._core._internal": ("_reconstruct",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    "ml_dtypes": tuple(ML_DTYPES),
}  # fmt: skip


def _named() -> Iterator[tuple[str, str, Verdict]]:
    for builtins in ("builtins", "__builtin__"):
        yield from ((builtins, name, Verdict.PLAIN) for name in _BUILTINS)
    yield "__builtin__", "xrange", Verdict.PLAIN
    yield "_codecs", "encode", Verdict.PLAIN
    yield from (("collections", name, Verdict.TENSORS) for name in _COLLECTIONS)
    yield from (("torch._utils", name, Verdict.TENSORS) for name in _REBUILD)
    yield from (("torch", name, Verdict.TENSORS) for name in (*_TORCH, *DTYPES, *STORAGE_DTYPES))
    yield from (("torch.cuda", name, Verdict.TENSORS) for name in STORAGE_DTYPES)
    for module, names in _OTHERS.items():
        yield from ((module, name, Verdict.TENSORS) for name in names)


KNOWN: Mapping[tuple[str, str], Verdict] = {(module, name): verdict for module, name, verdict in _named()}
"""Maps (module, name) to the verdict on importing and calling this name."""

_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")


def _encode(text: Callable[[object], str | None], args: object) -> str:
    """Return the fault of the arguments of a call of ``_codecs.encode``; '' if they are (string, encoding).

    Python would import an unknown encoding as a module. ``text`` is a function that returns an argument as a string.
    """
    return _with_encoding(text, args) if isinstance(args, tuple) and len(args) == 2 else _OTHER_ENCODING


def _with_encoding(text: Callable[[object], str | None], args: object) -> str:
    """Return the fault of the arguments of a call whose optional second argument is an encoding.

    Returns '' if the encoding is known to be harmless, or is missing. ``text`` is a function that returns an argument
    as a string.
    """
    if isinstance(args, tuple) and len(args) > 1 and (len(args) > 2 or text(args[1]) not in _ENCODINGS):
        return _OTHER_ENCODING
    return ""


_OTHER_ENCODING = "its encoding is not one that pickles use for bytes"

CHECKS: Mapping[tuple[str, str], Check] = {
    ("_codecs", "encode"): _encode,
    **{
        (module, name): _with_encoding
        for module in ("builtins", "__builtin__")
        for name in ("bytearray", "bytes", "str")
    },
}
"""Argument checks for the known names that are harmless only with some arguments."""
