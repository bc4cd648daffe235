"""What the tests of ``Pretrainer`` share: the recorded cases, and the object under test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import ckptsurgeon as cs

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
GOLDEN = FIXTURES / "golden" / "speechbrain"


def _cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speechbrain_cases", FIXTURES / "speechbrain_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speechbrain_cases"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CASES = _cases()


def pretrainer(source: str = "source", **given: Any) -> tuple[cs.Pretrainer, nn.Module]:
    module = CASES.encoder()
    return cs.Pretrainer("collected", {"enc": module}, **given), module
