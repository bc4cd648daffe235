"""Imports and runs the code to which a user's configuration refers."""

from __future__ import annotations

import difflib
import importlib.util
import os
import pkgutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from types import ModuleType
from typing import Any

from ...errors import ConfigError
from ...util.did_you_mean import close_names
from ...util.text import brief_repr, escape
from .._document import Document

__all__ = [
    "PROCESS_STATE",
    "imported",
    "lacks_module",
    "near_attributes",
    "near_modules",
    "own_file",
    "said_of",
    "user_code",
]

MISTYPED = 0.8
"""If the similarity of two names (difflib's ratio) is at least this, one may be a misspelling of the other."""

PROCESS_STATE = threading.RLock()
"""The lock for changes of sys.path, sys.stdout, random generators, and functions and settings of other modules."""

# Running code to which a configuration refers: its import path, its limits, its file.


@contextmanager
def user_code(document: Document) -> Iterator[None]:
    """Let the block import modules from the working directory and the configuration's folder.

    Code in the block prints to stderr, because stdout is for the results of the command. ``sys.exit`` in the block is
    an error, and the working directory is restored afterwards. Until the block ends, other threads wait to run user
    code.
    """
    with PROCESS_STATE, _importable(document):
        yield


@contextmanager
def _importable(document: Document) -> Iterator[None]:
    before, here = list(sys.path), os.getcwd()
    folder = os.path.abspath(document.folder)
    sys.path[:0] = list(dict.fromkeys([here, folder]))
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise document.fail(
            f"the code to which the file refers ended the program: sys.exit({brief_repr(error.code, 40)})."
        ) from error
    finally:
        sys.path[:] = before
        os.chdir(here)


def own_file(module: Any) -> str:
    """Return the file of the user's own module; '' if the module is installed or part of Python."""
    path = getattr(module, "__file__", None)
    if not path:
        return ""
    if os.path.realpath(path).startswith(_installed()):
        return ""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near


@cache
def _installed() -> tuple[str, ...]:
    """Return the beginnings of the paths of all modules that are installed or part of Python."""
    import sysconfig

    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(f"{os.path.realpath(sysconfig.get_path(name))}{os.sep}" for name in names)


# Importing ``package.module.thing`` as ``pydoc.locate`` does.


def imported(document: Document, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Import the modules of the dotted ``names`` in a document, before tensors are recorded.

    Returns a phrase for each file or package, such as ``net.Encoder, net.Decoder from net.py``, and the files of the
    user's own modules.
    """
    places: dict[str, list[str]] = {}
    files: list[str] = []
    for name in dict.fromkeys(names):
        module = _module_of(document, name)
        file = own_file(module)
        document.ran.append(f"the import of {file or module.__name__}")
        places.setdefault(file or module.__name__.partition(".")[0], []).append(name)
        files += [file] if file else []
    ran = tuple(f"{', '.join(names)} from {place}" for place, names in places.items())
    return ran, tuple(dict.fromkeys(files))


def near_attributes(module: object, wanted: str) -> str:
    """Return the hint "Did you mean …?" with attributes and submodules of a module that are similar to ``wanted``."""
    path = getattr(module, "__path__", ())
    names = {*dir(module), *(one.name for one in pkgutil.iter_modules(path))}
    return _question(wanted, names)


def near_modules(wanted: str, advice: str) -> str:
    """Return the hint "Did you mean …?" with modules that can be imported and have names similar to ``wanted``.

    If there are none, ``advice`` is returned, such as a pip command. It is not returned for a name that may be
    mistyped: a package of an attacker may have that name.
    """
    names = {"speechbrain", *(one.name for one in pkgutil.iter_modules())} - {wanted}
    return _question(wanted, (one for one in names if _is_mistyped(wanted, one))) or advice


def _is_mistyped(wanted: str, name: str) -> bool:
    """Return whether two names differ in only one or two letters; a lower threshold would match unrelated packages."""
    return difflib.SequenceMatcher(None, wanted, name).ratio() >= MISTYPED


def _question(wanted: str, names: Iterable[str]) -> str:
    near = close_names(wanted, sorted(name for name in names if not name.startswith("_")), most=300)
    return f"Did you mean {' or '.join(map(escape, near))}?" if near else ""


def _near(name: str) -> str:
    """Return the hint "Did you mean …?" for a dotted name, with names that are similar to its first wrong part."""
    import pydoc

    parts = name.split(".")
    found = pydoc.locate(parts[0])
    for part in parts[1:]:
        inner = getattr(found, part, None) or pydoc.locate(".".join([getattr(found, "__name__", ""), part]))
        if inner is None:
            return near_attributes(found, part)
        found = inner
    return ""


def _module_of(document: Document, name: str) -> ModuleType:
    """Return the module of a dotted name, with the search rules of hyperpyyaml; raises ConfigError if there is none."""
    import pydoc  # imported late, because only configurations that refer to code need it

    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise _import_failed(document, name, error.value) from error
    if found is None:
        head = name.partition(".")[0]
        if importlib.util.find_spec(head) is not None:
            raise document.fail(f"there is no module or object {escape(name)}.", _near(name))
        hint = near_modules(head, f"pip install {escape(head)}.")
        raise document.fail(f"{escape(name)} needs the package {escape(head)}.", hint)
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = pydoc.safeimport(".".join(parts[:end]))
        if module is not None:
            return module
    return importlib.import_module("builtins")


def said_of(error: BaseException) -> str:
    """Return the class of an exception and its message, if it has one: ``assert x`` raises one without a message."""
    return f"{type(error).__name__}: {escape(str(error))}" if str(error) else type(error).__name__


def lacks_module(document: Document, name: str, missing: str) -> ConfigError:
    """Return the error for the code ``name`` that imports the module ``missing``, which cannot be found.

    If the package of the module is there, pip cannot help: the package only lacks this module.
    """
    head = missing.partition(".")[0]
    if head in sys.modules or importlib.util.find_spec(head) is not None:
        return document.fail(
            f"{escape(name)} needs the module {escape(missing)}, which the package {escape(head)} does not have.",
            f"Correct the import, or install another version of {escape(head)}.",
        )
    own = "if it is a module of your own, run the command in the folder that has it."
    return document.fail(
        f"{escape(name)} needs the package {escape(head)}.", near_modules(head, f"pip install {escape(head)}; {own}")
    )


def _import_failed(document: Document, name: str, error: Any) -> ConfigError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return lacks_module(document, name, error.name)
    return document.fail(f"importing {escape(name)} failed: {said_of(error)}")
