"""Destinations made by code: ``model: {_target_: package.module.Class, …}``, Hydra's convention.

https://hydra.cc/docs/advanced/instantiate_objects/overview/. The user's code is run; the field ``ran`` of the
destination lists the code that ran.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import ConfigError
from ..planning.target import TargetSpec
from ..util.text import brief_repr, escape
from ._document import Document
from .torch_module.user_code import lacks_module, near_attributes, near_modules, own_file, said_of, user_code

__all__ = ["CONFIG", "instantiated", "located", "targets_in"]

_OWN = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


class _Factory:
    field = "_target_"

    def code(self, document: Document) -> Sequence[str]:
        """Return every ``_target_`` of the model section."""
        return tuple(targets_in(document.model))

    def load(self, document: Document) -> TargetSpec:
        """Import the code, build the model without memory for its weights, and return it as a destination."""
        from .torch_module.module import module_target

        found: list[_Located] = []
        with user_code(document):
            _resolve_all(document, document.model, found)  # import before tensors are recorded

        def build() -> Any:
            with user_code(document):
                return _instantiate(document, document.model)

        return module_target(
            build,
            kind="factory",
            name=document.name,
            config=document.path,
            weights=document.constructor_weights,
            files=tuple(dict.fromkeys(one.file for one in found if one.file)),
            ran=tuple(dict.fromkeys(f"{one.target} from {one.source}" for one in found)),
        )


@dataclass(frozen=True)
class _Located:
    """The object that a ``_target_`` names, its module, and the file of this module ("" if the module is installed)."""

    target: str
    value: Any
    module: str
    file: str

    @property
    def source(self) -> str:
        """The user's file with the code of the object; for an installed module, the name of the module."""
        return self.file or self.module


def _locate(document: Document, target: Any) -> _Located:
    """Return the object with a dotted name such as ``package.module.Class``, and its module.

    The longest part of the name from its beginning that is a module is imported: of ``torch.nn.Linear.forward``, it is
    ``torch.nn``. The other parts are names of attributes. Raises ConfigError if the name cannot be imported.
    """
    if not isinstance(target, str) or "." not in target:
        raise document.fail(f"the field _target_ is {brief_repr(target, 80)}; it must be package.module.Class.")
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise _failed(document, target, error) from error
        except Exception as error:
            raise _failed(document, target, error) from error
        module = found
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                raise document.fail(
                    f"the module {escape(name)} has no {escape('.'.join(parts[end:]))}.",
                    near_attributes(found, attribute),
                )
            found = getattr(found, attribute)
        return _Located(target, found, module.__name__, own_file(module))
    raise document.fail(
        f"{escape(target)} cannot be imported: there is no module {escape(parts[0])}.",
        near_modules(parts[0], "Install the module, or run the command in the folder that has it."),
    )


def located(document: Document) -> Any:
    """Return the class or function that a document names as ``_target_``; it is imported, but not called."""
    with user_code(document):
        return _locate(document, document.model["_target_"]).value


def _failed(document: Document, target: str, error: BaseException) -> ConfigError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return lacks_module(document, target, error.name)
    return document.fail(f"importing {escape(target)} failed: {said_of(error)}")


def targets_in(node: Any) -> Iterator[str]:
    """Yield the name of every ``_target_`` in nested configurations."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield escape(str(node["_target_"]))
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from targets_in(inner)


def _resolve_all(document: Document, node: Any, found: list[_Located]) -> None:
    """Import the object of every ``_target_`` in nested configurations, and append it to ``found``.

    Raises ConfigError if a name cannot be imported, and for OmegaConf's interpolations ``${…}``.
    """
    if isinstance(node, str) and "${" in node:
        raise document.fail(
            f"{brief_repr(node, 80)} is an interpolation of OmegaConf, which ckpt does not resolve.",
            "Write the value itself.",
        )
    if isinstance(node, Mapping):
        if "_target_" in node:
            found.append(_locate(document, node["_target_"]))
            document.ran.append(f"the import of {found[-1].source}")
        for value in node.values():
            _resolve_all(document, value, found)
    elif isinstance(node, list):
        for value in node:
            _resolve_all(document, value, found)


def instantiated(document: Document, node: Mapping[str, Any]) -> Any:
    """Build and return the object that an entry with ``_target_`` describes; this runs the user's code.

    Raises ConfigError if an import fails. Exceptions of the user's code are not caught.
    """
    _resolve_all(document, node, [])
    return _instantiate(document, node)


def _instantiate(document: Document, node: Any) -> Any:
    """Return ``node`` with each ``_target_`` entry in it replaced by the object that the entry describes.

    The innermost objects are built first.
    """
    if isinstance(node, list):
        return [_instantiate(document, value) for value in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _instantiate(document, value) for key, value in node.items()}
    located = _locate(document, node["_target_"])
    call = located.value
    deep = node.get("_recursive_", True)
    args = [_instantiate(document, value) if deep else value for value in node.get("_args_", [])]
    kwargs = {
        str(key): _instantiate(document, value) if deep else value for key, value in node.items() if key not in _OWN
    }
    if node.get("_partial_"):
        return partial(call, *args, **kwargs)
    document.ran.append(f"{escape(located.target)} from {located.source}")
    return call(*args, **kwargs)


CONFIG = _Factory()
