"""Imports optional packages, and the user's own Python files that a configuration refers to."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ...destinations._document import Document
from ...destinations.factory import targets_in
from ...destinations.torch_module.user_code import user_code
from ...errors import CheckpointError, ConfigError
from ...storage.small_files import CodeLoader
from ...util.did_you_mean import did_you_mean
from ...util.text import escape

__all__ = ["load_from_user_file", "require_package", "split_file_name", "user_code_in"]


def require_package(name: str, *, extra: str = "train") -> Any:
    """Import and return the package ``name``, which ``pip install ckptsurgeon[extra]`` installs.

    Raises ConfigError if the package, or a library that it needs, is missing.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise ConfigError(
            f"the package {name} is needed, and cannot be imported: {error}.",
            hint=f"pip install 'ckptsurgeon[{extra}]' installs it.",
        ) from error


def split_file_name(name: str) -> tuple[str, str] | None:
    """Split ``my_file.py:name`` into ``my_file.py`` and ``name``; return None if the string does not have this form."""
    path, _, attribute = name.rpartition(":")
    return (path, attribute) if path.endswith(".py") else None


def user_code_in(section: Any) -> Iterator[str]:
    """Yield the code that a ``train:`` section names: each ``my_file.py:name``, and the value of every ``_target_``.

    A ``_target_`` is yielded even if it is the code of a package, such as ``torch.nn.Linear``.
    """
    yield from targets_in(section)
    yield from _named_in_files(section)


def _named_in_files(node: Any) -> Iterator[str]:
    if isinstance(node, str) and split_file_name(node):
        yield escape(node)
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for value in inner:
        yield from _named_in_files(value)


def load_from_user_file(what: str, path: str, attribute: str, *, example: str, module: str) -> object:
    """Import the user's file ``path`` and return its ``attribute``, such as a class.

    ``what`` is the beginning of error messages, ``example`` a correct reference for the hint, and ``module`` the name
    under which the file is imported. Raises ConfigError if the file does not exist, cannot be imported, or lacks the
    attribute; the hint then has the nearest name.
    """
    if not os.path.isfile(path) or not path.endswith(".py"):
        why = "does not exist" if not os.path.exists(path) else "is not a Python file"
        raise ConfigError(f"{what}: {escape(path)} {why}.", hint=did_you_mean(path, f"Write it as {example}."))
    spec = importlib.util.spec_from_file_location(module, path, loader=CodeLoader(module, path))
    assert spec is not None  # because the path ends in .py
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    try:
        with user_code(Document(path, "", None, {})):
            sys.modules[module] = made  # dataclasses and pickle look it up there
            spec.loader.exec_module(made)
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be imported: {type(error).__name__}: {escape(str(error).rstrip('.'))}."
        ) from error
    if not hasattr(made, attribute):
        own = [one for one, value in vars(made).items() if getattr(value, "__module__", None) == module]
        near = difflib.get_close_matches(attribute, own, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The file defines {', '.join(own) or 'nothing'}."
        raise ConfigError(f"{what}: {escape(path)} does not define {escape(attribute)}.", hint=hint)
    return getattr(made, attribute)
