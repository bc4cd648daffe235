"""Networks are built once in all processes that test together."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers.utils import logging

import ckptsurgeon as cs
from ckptsurgeon.destinations import transformers as kind
from ckptsurgeon.destinations.hf.model import offline
from ckptsurgeon.destinations.torch_module.opened import exchanged
from ckptsurgeon.storage import cached_documents

from ..helpers.transformers_models import GPT2, write_config

SAVE = torch.save


def test_a_network_is_built_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write_config("dst/config.json", GPT2, "GPT2LMHeadModel"))
    first = cs.load_target(config)
    monkeypatch.setattr(kind, "_built", lambda *given: pytest.fail("built again"))
    assert cs.load_target(config).tensors == first.tensors
    folder = tmp_path_factory.getbasetemp()
    assert Path(cached_documents.FOLDER).parent == (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


def test_only_functions_whose_modules_are_searched_are_replaced() -> None:
    with exchanged((torch.save, "save", lambda save: lambda *args: save(*args))):
        assert torch.save is not SAVE
    assert torch.save is SAVE
    with (
        pytest.raises(AssertionError, match=r"ckpt also replaces \['save_file'\]"),
        exchanged((safetensors.torch.save_file, "save_file", lambda save: lambda *args: save(*args))),
    ):
        pass


def test_transformers_is_silent_while_a_network_is_built_and_warns_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library, said = logging.get_logger("transformers.models.never_heard_of"), StringIO()
    (handler,) = logging.get_logger("transformers").handlers
    monkeypatch.setattr(handler, "stream", said)
    before = logging.get_verbosity()  # Other tests of this process may have made transformers quiet.
    logging.set_verbosity(logging.WARNING)
    try:
        with offline():
            library.warning("too early")
            library.error("an error")
        assert logging.get_verbosity() == logging.WARNING
        library.warning("a warning")
    finally:
        logging.set_verbosity(before)
    assert said.getvalue() == "[transformers] an error\n[transformers] a warning\n"


def test_commands_that_are_started_keep_nothing() -> None:
    assert os.environ["CKPTSURGEON_NO_BUILDS"] == "1"
