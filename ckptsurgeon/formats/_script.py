"""TorchScript archives: the tensors of a scripted module, without its program.

``<root>/data.pkl`` pickles the module as an object of a class that ``<root>/code`` defines (torch/jit/_serialization.py
and torch/csrc/jit/serialization/export_module.cpp). Its attributes are read, the code is not: tensors are parameters,
buffers and plain attributes alike, since only the code tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import FormatError, UnsafeError
from ..tensors import TensorInfo
from . import limits
from ._values import Name, Opaque

__all__ = ["script_tensors"]

_CLASSES = "__torch__"


def script_tensors(tree: Any) -> dict[str, TensorInfo]:
    """Return the tensors of a scripted module by their paths.

    Raises FormatError when it is no module, UnsafeError when it nests or shares without end.
    """
    if not _is_module(tree):
        raise FormatError("the archive holds no scripted module.", rule="torchscript")
    found: dict[str, TensorInfo] = {}
    waiting, visits = [("", tree)], 0
    while waiting:
        prefix, module = waiting.pop()
        visits += 1
        if visits > limits.TENSORS or prefix.count(".") > limits.KEY_SEGMENTS or len(found) > limits.TENSORS:
            raise UnsafeError("a scripted module nests too deeply or shares too much.", rule="module tree")
        children = []
        for name, value in _attributes(module):
            if isinstance(value, TensorInfo):
                found[f"{prefix}{name}"] = value
            elif _is_module(value):
                children.append((f"{prefix}{name}.", value))
        waiting += reversed(children)
    if not found:
        raise FormatError(
            "the scripted module holds no tensors.",
            hint="A frozen one has them as constants of its program; script it without torch.jit.freeze.",
            rule="no state dict",
        )
    return found


def _attributes(module: Opaque) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in module.attributes().items() if isinstance(name, str))


def _is_module(value: object) -> bool:
    return isinstance(value, Opaque) and isinstance(value.name, Name) and value.name.module.startswith(_CLASSES)
