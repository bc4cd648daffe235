"""Destinations made by code: ``model: {_target_: package.module.Class, …}``, Hydra's convention.

https://hydra.cc/docs/advanced/instantiate_objects/overview/. The code is the user's own and runs; what ran is said.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

from ..errors import ConfigError
from ..tensors import TargetSpec
from ..text import escape
from ._document import Document

__all__ = ["CONFIG"]

_OWN = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


class _Factory:
    field = "_target_"

    def load(self, document: Document) -> TargetSpec:
        """Import what is named, build it without storage, and return what its state dict holds."""
        from ._module import module_target

        ran: list[str] = []
        with _user_code(document):
            _resolve_all(document, document.model, ran)  # imports happen before tensors are watched

        def build() -> Any:
            with _user_code(document):
                return _instantiate(document, document.model, [])

        return module_target(
            build,
            kind="factory",
            name=document.name,
            config=document.path,
            ran=tuple(dict.fromkeys(ran)),
        )


@contextmanager
def _user_code(document: Document) -> Iterator[None]:
    """Let modules be found in the working directory and the configuration's folder, for this time only.

    What the code prints goes to stderr: stdout is for answers.
    """
    before = list(sys.path)
    folder = os.path.dirname(os.path.abspath(document.path))
    sys.path[:0] = list(dict.fromkeys([os.getcwd(), folder]))
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = before


def _locate(document: Document, target: Any, ran: list[str]) -> Any:
    """Import the longest beginning of a dotted name that is a module, and take the rest as attributes."""
    if not isinstance(target, str) or "." not in target:
        raise document.fail(f"_target_ is {target!r:.80}; it must be package.module.Class.")
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
        ran.append(f"{target} from {_file_of(found)}")
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                raise document.fail(f"{escape(name)} has no {escape('.'.join(parts[end:]))}.")
            found = getattr(found, attribute)
        return found
    raise document.fail(
        f"{escape(target)} cannot be imported: there is no module {escape(parts[0])}.",
        "Install it, or run where it can be imported from.",
    )


def _file_of(module: Any) -> str:
    path = os.path.relpath(str(getattr(module, "__file__", None) or ".."))
    installed = path.startswith("..") or "site-packages" in path
    return str(module.__name__) if installed else path


def _failed(document: Document, target: str, error: BaseException) -> ConfigError:
    if isinstance(error, ModuleNotFoundError):
        return document.fail(f"{escape(target)} needs the package {error.name}.", f"pip install {error.name}.")
    return document.fail(f"importing {escape(target)} failed: {type(error).__name__}: {escape(str(error))}")


def _resolve_all(document: Document, node: Any, ran: list[str]) -> None:
    """Import everything a nest of configurations names, and reject what only OmegaConf could read."""
    if isinstance(node, str) and "${" in node:
        raise document.fail(f"{node!r:.80} is an interpolation, which is not resolved here.", "Write the value.")
    if isinstance(node, Mapping):
        if "_target_" in node:
            _locate(document, node["_target_"], ran)
        for value in node.values():
            _resolve_all(document, value, ran)
    elif isinstance(node, list):
        for value in node:
            _resolve_all(document, value, ran)


def _instantiate(document: Document, node: Any, ran: list[str]) -> Any:
    """Build what a nest of configurations describes, innermost first."""
    if isinstance(node, list):
        return [_instantiate(document, value, ran) for value in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _instantiate(document, value, ran) for key, value in node.items()}
    call = _locate(document, node["_target_"], ran)
    deep = node.get("_recursive_", True)
    args = [_instantiate(document, value, ran) if deep else value for value in node.get("_args_", [])]
    kwargs = {
        str(key): _instantiate(document, value, ran) if deep else value
        for key, value in node.items()
        if key not in _OWN
    }
    if node.get("_partial_"):
        return partial(call, *args, **kwargs)
    return call(*args, **kwargs)


CONFIG = _Factory()
