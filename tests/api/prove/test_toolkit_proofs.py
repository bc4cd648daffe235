"""What ``ckpt prove`` said of networks of ESPnet and SpeechBrain, recorded in their environments (``make oracle``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.toolkit_proofs import FAULTS

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden"


@pytest.mark.parametrize(("toolkit", "name"), [("espnet", "conformer"), ("speechbrain", "ecapa")])
def test_each_planted_fault_was_caught_and_its_block_named(toolkit: str, name: str) -> None:
    recorded = json.loads((GOLDEN / toolkit / "proofs.json").read_text())[name]
    assert recorded.pop("nothing") == {"verdict": "SAME", "drift": ""}
    assert recorded.keys() == FAULTS[name].keys()
    for fault, (block, _) in FAULTS[name].items():
        assert recorded[fault]["verdict"] == "DIFFERENT"
        assert f"{block}.".startswith(f"{recorded[fault]['drift']}.")  # a decoder of one layer is one block
