"""Networks are built once in a process that tests, and each process keeps its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.destinations import transformers as kind
from ckptsurgeon.storage import cached_documents

from ..helpers.transformers_models import GPT2, write_config


def test_a_network_is_built_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write_config("dst/config.json", GPT2, "GPT2LMHeadModel"))
    first = cs.load_target(config)
    monkeypatch.setattr(kind, "_built", lambda *given: pytest.fail("built again"))
    assert cs.load_target(config).tensors == first.tensors
    assert Path(cached_documents.FOLDER).parent == tmp_path_factory.getbasetemp()


def test_commands_that_are_started_keep_nothing() -> None:
    assert os.environ["CKPTSURGEON_NO_BUILDS"] == "1"
