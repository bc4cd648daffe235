"""Checks that installed, unchanged code builds a model, so that configuration and versions determine its tensors."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from ...storage.small_files import is_of_system
from ...util.version import __version__

__all__ = ["LIBRARIES", "is_stock", "only_installed", "versions"]

LIBRARIES = ("torch", "transformers")
_CODE = (".py", ".pyc", ".so")
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def versions() -> dict[str, str]:
    """Return values that identify all installed code that builds a model; {} if no values can identify it.

    Imports neither torch nor transformers. In three cases, no values can identify the code: this process has already
    imported transformers, so that classes may have been registered or changed; this process has changed torch's
    default dtype or device; a package is installed as an editable checkout, whose code changes without a new version.
    """
    if "transformers" in sys.modules or _has_other_defaults():
        return {}
    found = {name: _installed(name) for name in LIBRARIES}
    if not all(found.values()):
        return {}
    python = ".".join(map(str, sys.version_info[:3]))
    return {**found, "python": python, "ckptsurgeon": __version__, "code": _own_code()}


def _has_other_defaults() -> bool:
    """Return whether this process has changed torch's default dtype or default device."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and (torch.get_default_dtype(), str(torch.get_default_device())) != (torch.float32, "cpu")


def _installed(name: str) -> str:
    """Return the version of an installed package and the SHA-256 of its RECORD; "" if pip did not install its files.

    The version is not enough: all commits of a main branch have the same version, such as 5.24.0.dev0. RECORD has the
    digests of all files.
    """
    folder = _metadata_folder(name)
    with suppress(OSError), open(os.path.join(folder, "RECORD"), "rb") as file:
        return f"{os.path.basename(folder)} {hashlib.sha256(file.read()).hexdigest()}" if folder else ""
    return ""


def _metadata_folder(name: str) -> str:
    """Return the path of an installed package's ``.dist-info``; "" if its files are not where pip installs them.

    ``importlib.metadata`` would find the same folder, but imports 35 modules first
    (https://packaging.python.org/en/latest/specifications/recording-installed-packages).
    """
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        return ""
    if spec is None or spec.origin is None:
        return ""
    head, tail = f"{name}-", ".dist-info"
    parent = os.path.dirname(os.path.dirname(spec.origin))
    with suppress(OSError):
        found = [one for one in os.listdir(parent) if one.startswith(head) and one.endswith(tail)]
        return os.path.join(parent, found[0]) if len(found) == 1 else ""
    return ""


def _own_code() -> str:
    """Return the SHA-256 of the names, sizes and times of the source files of ``ckptsurgeon.destinations``.

    In a checkout these files change without a new version.
    """
    found: list[str] = []
    for folder in (_HERE, os.path.join(_HERE, "hf"), os.path.join(_HERE, "torch_module")):
        with os.scandir(folder) as entries:
            files = [one for one in entries if one.name.endswith(".py")]
        found += sorted(f"{one.name} {one.stat().st_size} {one.stat().st_mtime_ns}" for one in files)
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def only_installed(files: Iterable[str]) -> bool:
    """Return whether all files in ``files`` are code, files of installed packages, or system files."""
    others = (os.path.realpath(path) for path in files if not path.endswith(_CODE) and os.path.exists(path))
    return all(path.startswith(_library_folders()) or is_of_system(path) for path in others)


@cache
def _library_folders() -> tuple[str, ...]:
    """Return the folders of Python's library and of installed packages, with symbolic links resolved."""
    import sysconfig  # imported late: plans from the cache do not need it

    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in names})


def is_stock(modules: Collection[Any]) -> bool:
    """Return whether the classes of all modules of a model are classes of torch or transformers."""
    return all(type(module).__module__.partition(".")[0] in LIBRARIES for module in modules)
