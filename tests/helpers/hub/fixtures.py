"""The hub of a test, and the client set up for it: its address, a fresh cache, no token, no xet, no waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from .server import Hub, serving

__all__ = ["end_fetches", "hub", "naps", "other_host"]

TIMEOUT_S = 2
"""How long the client waits for a server that has stopped sending; its own is 10."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that ``HF_ENDPOINT`` names, for this process and those it starts; the cache is ``hf/hub`` beside the test.

    The client reads the environment when it is imported, so its constants are set too.
    """
    home = tmp_path / "hf"
    with serving() as found:
        _set_environment(monkeypatch, found.url, home, tmp_path)
        _set_constants(monkeypatch, found.url, home)
        yield found
        _forget_connections()


@pytest.fixture
def other_host() -> Iterator[Hub]:
    """A second server: another port, so another origin."""
    with serving() as found:
        yield found


@pytest.fixture
def naps(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many seconds huggingface_hub would have waited, in order: it does not wait."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    found: list[float] = []
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=found.append))
    return found


def _set_environment(monkeypatch: pytest.MonkeyPatch, url: str, home: Path, folder: Path) -> None:
    gone = (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_TOKEN_PATH",
    )
    for name in (*gone, *(one for one in os.environ if one.lower().endswith("_proxy"))):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT_S), "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT_S),
        "XDG_CACHE_HOME": str(folder / "cache"), "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def _set_constants(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name, value in {
        "ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"), "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False,
        "HF_HUB_DOWNLOAD_TIMEOUT": TIMEOUT_S, "HF_HUB_ETAG_TIMEOUT": TIMEOUT_S, "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(url)}))
    _forget_connections()


def end_fetches() -> None:
    """Wait for the threads of failed runs, which these leave: a connection that one opens later is closed by nobody."""
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join(2 * TIMEOUT_S)


def _forget_connections() -> None:
    from huggingface_hub.utils import _http

    from ckptsurgeon.storage.read.http.client import close_connections

    end_fetches()
    _http.close_session()
    close_connections()
