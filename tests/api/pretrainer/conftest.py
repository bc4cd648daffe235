"""A server on loopback for the tests of ``Pretrainer``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptsurgeon.storage.read.http.client import close_connections

from .cases import CASES


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Files to load in the working directory, and a server that also plays the hub."""
    from huggingface_hub import constants

    CASES.make_files(tmp_path)
    with CASES.served(tmp_path) as (url, asked):
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("ckptsurgeon.storage.read.http.client.sleep", lambda seconds: None)
        yield SimpleNamespace(url=url, asked=asked)
        close_connections()
