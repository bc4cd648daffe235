"""Caches the networks that tests build again and again, as ckpt caches them for its next process.

``tests/api/resize/test_cached.py`` and ``tests/destinations/hf/test_cached_builds.py`` hold that plans and outputs are
the same. Each process that tests has a folder of its own, so the code that is tested built what is in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["keep_builds"]

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
