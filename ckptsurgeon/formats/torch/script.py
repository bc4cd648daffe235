"""Reads the tensors of a scripted module from a TorchScript archive, without its program.

``<root>/data.pkl`` pickles the module as an object of a class that ``<root>/code`` defines
(torch/jit/_serialization.py and torch/csrc/jit/serialization/export_module.cpp). Its attributes are read, its code is
not. Only the code tells parameters, buffers and other tensor attributes apart, so all of them are returned. Tensors in
lists, dicts and tuples are only counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import FormatError, UnsafeError
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from ..base import limits
from ..pickle.values import GlobalName, OpaqueResult
from ..zip.archive import Archive

__all__ = ["other_tensors", "script_note", "script_tensors"]

_CLASSES = "__torch__"


def script_tensors(tree: Any) -> dict[str, TensorInfo | OpaqueResult]:
    """Return the tensors of a scripted module by their dotted names, and the objects whose state is not a dict.

    Such an object represents a quantised layer or its weights, and contains the tensors in an order of its own.

    Raises FormatError if ``tree`` is not a scripted module, has no tensors, or has a name that is too long. Raises
    UnsafeError if there are too many submodules or tensors, or they are nested too deeply.
    """
    if not _is_module(tree):
        raise FormatError("the archive contains no scripted module.", rule="torchscript")
    found: dict[str, TensorInfo | OpaqueResult] = {}
    waiting, visits, characters = [("", tree)], 0, 0
    while waiting:
        prefix, module = waiting.pop()
        visits += 1
        if visits > limits.TENSORS or prefix.count(".") > limits.KEY_SEGMENTS or len(found) > limits.TENSORS:
            raise _endless()
        if prefix and module.state is not None and not isinstance(module.state, dict):
            found[prefix[:-1]] = module
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
            "the scripted module has no tensors.",
            hint="The tensors of a frozen module are constants in its code: do not use torch.jit.freeze.",
            rule="no state dict",
        )
    return found


def _endless() -> UnsafeError:
    return UnsafeError(
        "a scripted module has too many submodules or tensors, or they are nested too deeply.", rule="module tree"
    )


def _path(prefix: str, name: str) -> str:
    """Return the dotted name of an attribute; raises FormatError if it would be too long.

    The length is checked before the name is built, since a small file can describe very long names.
    """
    if len(prefix) + len(name) > limits.KEY_CHARACTERS:
        raise FormatError(
            f"a scripted module has a key over {limits.KEY_CHARACTERS} characters: {escape(prefix + name[:40], 40)}.",
            rule="key length",
        )
    return f"{prefix}{name}"


def _attributes(module: OpaqueResult) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the tensors and modules that are attributes of a module."""
    for name, value in module.attributes().items():
        if isinstance(name, str) and (isinstance(value, TensorInfo) or _is_module(value)):
            yield name, value


def _is_module(value: object) -> bool:
    return (
        isinstance(value, OpaqueResult)
        and isinstance(value.name, GlobalName)
        and value.name.module.startswith(_CLASSES)
    )


def other_tensors(tree: Any, found: Mapping[str, TensorInfo | OpaqueResult]) -> int:
    """Return the number of tensors in lists, dicts and tuples of a scripted module that are not in ``found``, too.

    ``found`` is the result of ``script_tensors(tree)``. Values beyond ``limits.COUNTED`` are not counted.
    """
    places = {info.place or id(info) for info in found.values() if isinstance(info, TensorInfo)}
    others, seen, left = set[object](), set[int](), limits.COUNTED
    waiting = [tree]
    while waiting and left > 0:
        node = waiting.pop()
        left -= 1
        if isinstance(node, TensorInfo):
            others.add(node.place or id(node))
            continue
        if not isinstance(node, (dict, list, tuple, OpaqueResult)) or id(node) in seen:
            continue
        seen.add(id(node))
        if not isinstance(node, OpaqueResult):
            waiting += node.values() if isinstance(node, dict) else node
        elif not _is_module(node):
            waiting.append(node.args)
        elif isinstance(node.state, dict):
            waiting += node.attributes().values()
    return len(others - places)


def script_note(archive: Archive, root: str, others: int = 0) -> str:
    """Return the note on a TorchScript archive: only the tensors of the module are read from it.

    If the module was frozen in part, its program has further weights as constants: the note counts them. ``others`` is
    the result of ``other_tensors``.
    """
    constants = sum(name.startswith(f"{root}constants/") for name in archive.entries)
    also = f", and not {count(constants, 'tensor')} that its program has as constants" if constants else ""
    also += f", and not {count(others, 'tensor')} in lists, dicts or tuples of the module" if others else ""
    return f"read the tensors of a TorchScript module, not its program{also}"
