"""Loading what was collected: reports, options, real layouts, and the page that tells of it."""

from __future__ import annotations

import json
import re
from logging import LogRecord
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from .cases import CASES, FIXTURES, GOLDEN


def test_a_device_is_taken_as_speechbrain_took_it_before_version_1(server: SimpleNamespace) -> None:
    for arguments, named in ((("cpu",), {}), ((), {"device": torch.device("cpu")}), ((None,), {"device": None})):
        ours = cs.Pretrainer("collected", {"enc": CASES.encoder()}, {"enc": "source/partial.ckpt"})
        ours.collect_files("source")
        assert ours.load_collected(*arguments, **named).counts == {"copied": 1, "kept": 3}
    with pytest.raises(cs.ConfigError, match="load_collected got 3, which is neither a map of options nor a device"):
        ours.load_collected(3)


def test_the_report_says_what_became_of_each(server: SimpleNamespace, logged: list[LogRecord]) -> None:
    enc, labels = CASES.encoder(), dict[str, Any]()
    ours = cs.Pretrainer(
        "collected", {"enc": enc, "labels": labels, "head": CASES.head()},
        {"enc": "source/partial.ckpt", "labels": "source/labels.txt"}, {"labels": CASES.read_lines}, {"head": lambda: False},
    )  # fmt: skip
    ours.collect_files("source")
    report = ours.load_collected()
    assert report.counts == {"copied": 1, "kept": 3}
    assert (report.hooked, report.skipped) == (("labels",), ("head",))
    assert report.summary().splitlines() == [
        "enc: 1 copied, 3 kept of 4 tensors; 1 source key not used; not in the source: 0.bias, 2.weight, 2.bias",
        "labels: loaded by its hook",
        "head: skipped, because its condition is false",
    ]
    assert (
        "enc: 3 tensors kept their values, because they are not in the file: 0.bias, 2.weight, 2.bias" in report.notes
    )
    assert [record.getMessage() for record in logged if record.name.startswith("ckptsurgeon")] == [
        "enc: 3 tensors kept their values, because they are not in the file: 0.bias, 2.weight, 2.bias",
        "enc: 1 key not used: extra.bias",
    ]


def test_options_are_those_of_load_into_by_name(server: SimpleNamespace) -> None:
    head = CASES.head()
    before = head.weight.detach().clone()
    ours = cs.Pretrainer("collected", {"head": head}, {"head": "source/wide.ckpt"})
    ours.collect_files()
    assert ours.load_collected({"head": {"on_mismatch": "slice"}}).counts == {"resized": 2}
    assert torch.equal(head.weight, torch.load("source/wide.ckpt")["weight"][:5])
    assert not torch.equal(head.weight, before)
    for options, why in (
        ({"hed": {}}, "options has an entry for 'hed'"),
        ({"head": {"on_mistake": "init"}}, "no option 'on_mistake'"),
        ({"head": "init"}, "options is"),
    ):
        with pytest.raises(cs.ConfigError, match=why):
            ours.load_collected(options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ecapa", "ecapa classifier", "crdnn"])
def test_real_layouts_load_whole(name: str) -> None:
    rows = json.loads((GOLDEN / "layouts.json").read_text())[name]
    if name == "crdnn":
        assert ["RNN.rnn.0.drop_masks", [16000, 16], "float32"] in rows
    state = CASES.from_layout(rows)
    torch.save(state, "net.ckpt")
    network = CASES.module_of(rows)
    ours = cs.Pretrainer("collected", {"net": network})
    ours.collect_files(".")
    assert ours.load_collected().counts == {"copied": len(rows)}
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_python_of_the_page_does_what_it_says() -> None:
    """Every block of docs/howto/speechbrain.md that is ours, in order; the first one makes the files."""
    text = (FIXTURES.parent / "docs/howto/speechbrain.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own page
    assert len(blocks) == 3
    assert torch.equal(names["model"].weight, torch.load("pretrained/embedding_model.ckpt")["weight"])
    assert names["report"].counts == {"copied": 4}
