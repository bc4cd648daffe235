"""TorchScript archives: the tensors of a scripted module, without its program.

``<root>/data.pkl`` pickles the module as an object of a class that ``<root>/code`` defines (torch/jit/_serialization.py
and torch/csrc/jit/serialization/export_module.cpp). Its attributes are read, the code is not: tensors are parameters,
buffers and plain attributes alike, since only the code tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import FormatError, UnsafeError
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..base import limits
from ..pickle.values import Name, Opaque

__all__ = ["script_tensors"]

_CLASSES = "__torch__"


def script_tensors(tree: Any) -> dict[str, TensorInfo]:
    """Return the tensors of a scripted module by their paths.

    Raises FormatError when it is no module or a name is too long, UnsafeError when it nests or shares without end.
    """
    if not _is_module(tree):
        raise FormatError("the archive holds no scripted module.", rule="torchscript")
    found: dict[str, TensorInfo] = {}
    waiting, visits, characters = [("", tree)], 0, 0
    while waiting:
        prefix, module = waiting.pop()
        visits += 1
        if visits > limits.TENSORS or prefix.count(".") > limits.KEY_SEGMENTS or len(found) > limits.TENSORS:
            raise _endless()
        children = []
        for name, value in _attributes(module):
            path = _path(prefix, name)
            characters += len(path)
            if characters > limits.PATH_CHARACTERS:
                raise _endless()
            if isinstance(value, TensorInfo):
                found[path] = value
            else:
                children.append((f"{path}.", value))
        waiting += reversed(children)
    if not found:
        raise FormatError(
            "the scripted module holds no tensors.",
            hint="A frozen one has them as constants of its program; script it without torch.jit.freeze.",
            rule="no state dict",
        )
    return found


def _endless() -> UnsafeError:
    return UnsafeError("a scripted module nests too deeply or shares too much.", rule="module tree")


def _path(prefix: str, name: str) -> str:
    """Return the path of an attribute. One that is too long is never built: the file has its names once."""
    if len(prefix) + len(name) > limits.KEY_CHARACTERS:
        raise FormatError(
            f"a scripted module has a key over {limits.KEY_CHARACTERS} characters: {escape(prefix + name[:40], 40)}.",
            rule="key length",
        )
    return f"{prefix}{name}"


def _attributes(module: Opaque) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and modules that a module has."""
    for name, value in module.attributes().items():
        if isinstance(name, str) and (isinstance(value, TensorInfo) or _is_module(value)):
            yield name, value


def _is_module(value: object) -> bool:
    return isinstance(value, Opaque) and isinstance(value.name, Name) and value.name.module.startswith(_CLASSES)
