"""Caches the networks that tests build again and again, as ckpt caches them for its next process.

``tests/api/resize/test_cached.py`` and ``tests/destinations/hf/test_cached_builds.py`` hold that plans and outputs are
the same. Each run of the tests has a folder of its own, so the code that is tested built what is in it.
"""

from __future__ import annotations

import logging
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

__all__ = ["change_few_loggers", "keep_builds", "keep_templates", "search_few_modules", "write_no_configurations"]

CONFIGURATIONS = {
    "transformers.configuration_utils": "PreTrainedConfig",
    "transformers.generation.configuration_utils": "GenerationConfig",
}

REPLACED = {"load", "safe_open", "save"}
"""The names of all functions that ckpt replaces in imported modules while it builds a network."""
VERSIONS = {"torch": "of this process", "transformers": "of this process"}


def keep_builds(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let ckpt take networks from the cache in ``folder``, and add to it those that it builds."""
    from ckptsurgeon.destinations.hf import cached_build, ignored_keys, resizable
    from ckptsurgeon.storage import cached_documents

    monkeypatch.setattr(cached_documents, "OFF", "CKPTSURGEON_NO_BUILDS_AT_ALL")  # commands that are started build anew
    monkeypatch.setattr(cached_documents, "FOLDER", str(folder))
    monkeypatch.setattr(cached_documents, "_sweep", lambda folder: None)
    for module in (cached_build, ignored_keys, resizable):
        monkeypatch.setattr(module, "versions", lambda: VERSIONS)


def write_no_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers not write each configuration that it reads, as JSON, for a log that no one asked for."""
    for module, name in CONFIGURATIONS.items():
        if module in sys.modules:
            monkeypatch.setattr(getattr(sys.modules[module], name), "__repr__", object.__repr__)


def change_few_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers log errors alone, and warnings again, without a change of each of the thousands of loggers.

    ckpt asks for this whenever it builds a network. What is logged is then held against the level where it is written.
    """
    if "transformers.utils.logging" not in sys.modules:
        return
    library = logging.getLogger("transformers")
    wanted, set_level = library.level, library.setLevel
    if library.propagate or wanted < logging.WARNING:
        return

    def set_wanted(level: int) -> None:
        nonlocal wanted
        wanted = level
        if level < logging.WARNING:
            set_level(level)

    monkeypatch.setattr(library, "setLevel", set_wanted)
    monkeypatch.setattr(library, "getEffectiveLevel", lambda: wanted)
    for handler in library.handlers:
        monkeypatch.setattr(handler, "filters", [lambda record: record.levelno >= wanted])


def keep_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the template of the README.md that PEFT writes beside each adapter once."""
    if "peft" in sys.modules:
        import jinja2

        monkeypatch.setattr(jinja2, "Template", _template)


@cache
def _template(text: str) -> Any:
    import jinja2.environment

    return jinja2.environment.Template(text)


def search_few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ckpt search an installed module once for the functions that it replaces while it builds a network.

    It searches all modules for each network: 10,000, when hundreds of networks of transformers were built. Modules of
    tests are always searched.
    """
    import ckptsurgeon
    from ckptsurgeon.destinations.torch_module import opened

    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), *ckptsurgeon.__path__)
    without = set[str]()
    searched: tuple[tuple[int, str], list[str]] = ((0, ""), [])

    def has_none(module: object) -> bool:
        if not isinstance(module, ModuleType):
            return False
        names = vars(module)
        return names.keys().isdisjoint(REPLACED) and str(names.get("__file__")).startswith(installed)

    def imported() -> list[object]:
        nonlocal searched
        now = len(sys.modules), next(reversed(sys.modules))
        if now != searched[0]:
            found = {name: sys.modules[name] for name in sys.modules.keys() - without}
            without.update(name for name, module in found.items() if has_none(module))
            searched = now, [name for name in found if name not in without]
        return [sys.modules[name] for name in searched[1] if name in sys.modules]

    exchange = opened._exchange

    def exchanged(functions: Iterable[tuple[str, object, object]]) -> Iterator[Any]:
        found = list(functions)
        unknown = {name for name, _, _ in found} - REPLACED
        assert not unknown, f"ckpt also replaces {sorted(unknown)}: add them to REPLACED in {__name__}"
        return exchange(found)

    monkeypatch.setattr(opened, "_imported", imported)
    monkeypatch.setattr(opened, "_exchange", exchanged)
