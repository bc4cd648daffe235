"""ESPnet's ``file:src_key:dst_key:exclude_keys``, row by row.

The numbers in the comments are what ESPnet 202511 loads, strict | with ``ignore_init_mismatch``; where it loads
nothing without a word, or dies half way, ours is a result or an error that says what is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs

NET = """
from torch import nn
import torch


class Net(nn.Module):
    def __init__(self, vocab=5, bn=True):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.encoder2 = nn.Linear(4, 4)
        self.decoder = nn.Module()
        self.decoder.embed = nn.Embedding(vocab, 4)
        self.decoder.out = nn.Linear(4, vocab)
        if bn:
            self.bn = nn.BatchNorm1d(4)
"""


@pytest.fixture(autouse=True)
def files() -> nn.Module:
    Path("espnet_like_net.py").write_text(NET)
    Path("dst.yaml").write_text("model: {_target_: espnet_like_net.Net}")
    Path("dst7.yaml").write_text("model: {_target_: espnet_like_net.Net, vocab: 7}")
    Path("nobn.yaml").write_text("model: {_target_: espnet_like_net.Net, bn: false}")
    namespace: dict[str, Any] = {}
    exec(NET, namespace)  # noqa: S102 - the test's own text
    torch.manual_seed(0)
    net: nn.Module = namespace["Net"]()
    assert len(net.state_dict()) == 12
    torch.save(net.state_dict(), "file.pth")
    return net


def loaded(spec: str, destination: str = "dst.yaml", **options: Any) -> int:
    """How many tensors come from the source; what is written is verified."""
    plan = cs.transplant([spec], destination, **options)
    cs.apply(plan, "out.safetensors", force=True)
    assert cs.verify("out.safetensors").ok
    return sum(step.source is not None for step in plan.steps)


def said(spec: str) -> str:
    return "\n".join(cs.transplant([spec], "dst.yaml").notes)


ROWS = [
    ("file.pth", 12),  # 12 | 12
    ("file.pth:", 12),  # 12 | 12
    ("file.pth::", 12),  # 12 | 12
    ("file.pth:::", 12),  # 0, silent
    ("file.pth:decoder:decoder:", 3),  # 0, silent
    ("file.pth:::decoder,", 9),  # 0, silent
    ("file.pth:decoder:decoder", 3),  # 3 | 3
    ("file.pth:decoder:decoder:decoder.embed", 2),  # 2
    ("file.pth:::decoder", 9),  # 9
    ("file.pth:::encoder", 8),  # 8: encoder2 goes too
    ("file.pth:::decoder,bn", 4),  # 4
    ("file.pth:::decoder, bn", 4),  # 9: the blank is kept, so bn stays
    ("file.pth:encoder:encoder", 2),  # RuntimeError | 2
    ("file.pth:encoder.:encoder", 2),  # RuntimeError or 0, silent
    ("file.pth:encoder2:encoder", 2),  # 2
]


@pytest.mark.parametrize(("spec", "number"), ROWS)
def test_a_spec_loads_this_many(spec: str, number: int) -> None:
    assert loaded(spec) == number


@pytest.mark.parametrize(("spec", "number"), ROWS)
def test_the_same_through_the_command_line(spec: str, number: int, ckpt: Any) -> None:
    done = ckpt("transplant", "--source", spec, "dst.yaml", "-n", "--json")
    assert done.code == 0
    assert json.loads(done.out)["counts"] == {"copied": number} | ({"initialised": 12 - number} if number < 12 else {})


@pytest.mark.parametrize(
    ("spec", "note"),
    [
        ("file.pth:::", "the empty exclude of 'file.pth:::' is ignored"),
        ("file.pth:::decoder,", "an empty exclude"),
        ("file.pth:::decoder, bn", "blanks around 'bn'"),
        ("file.pth:::encoder", "takes encoder2 too, by prefix; --exclude encoder is the exact form"),
        ("file.pth:encoder.:encoder", "'encoder.' of 'file.pth:encoder.:encoder' is read as 'encoder'"),
    ],
)
def test_what_is_read_otherwise_than_it_looks_is_said(spec: str, note: str) -> None:
    assert note in said(spec)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            "file.pth:decoder:decoder:embed",
            r"exclude embed matches none.*Did you mean decoder.embed\?",
        ),  # 3: hits nothing
        ("file.pth:enc:encoder", "src_key enc matches none.*encoder"),  # RuntimeError or 0, silent
        ("file.pth:nosuch:encoder", "src_key nosuch matches none"),  # RuntimeError or 0, silent
        ("file.pth:encoder:nosuch", "dst_key nosuch .*is no module of the destination.*encoder"),  # AttributeError
        ("file.pth:a:b:c:d", "more than three fields"),
    ],
)
def test_what_would_load_nothing_is_an_error_with_the_nearest_names(spec: str, why: str) -> None:
    with pytest.raises(cs.CheckpointError, match=why) as caught:
        loaded(spec)
    assert caught.value.exit_code == 2


def test_a_submodule_s_file(files: nn.Module) -> None:  # 3
    torch.save(files.decoder.state_dict(), "file.pth")
    assert loaded("file.pth::decoder") == 3


def test_a_trainer_s_file(files: nn.Module) -> None:  # RuntimeError | 0
    optimizer = torch.optim.Adam(files.parameters())
    torch.save(
        {
            "model": files.state_dict(),
            "reporter": {"epoch": 1},
            "optimizers": [optimizer.state_dict()],
            "schedulers": [None],
            "scaler": None,
        },
        "checkpoint.pth",
    )
    assert loaded("checkpoint.pth") == 12


def test_every_key_under_module(files: nn.Module) -> None:  # RuntimeError | 0
    torch.save({f"module.{k}": v for k, v in files.state_dict().items()}, "file.pth")
    assert loaded("file.pth") == 12
    assert "stripped module from the keys" in said("file.pth")


def test_a_state_dict_under_module(files: nn.Module) -> None:  # 12
    torch.save({"module": files.state_dict()}, "file.pth")
    assert loaded("file.pth") == 12


def test_a_source_without_the_encoder(files: nn.Module) -> None:  # 10, silent
    torch.save({k: v for k, v in files.state_dict().items() if not k.startswith("encoder.")}, "file.pth")
    assert loaded("file.pth") == 10
    plan = cs.transplant("file.pth", "dst.yaml")
    assert [s.key for s in plan.steps if s.kind == "initialised"] == ["encoder.weight", "encoder.bias"]
    with pytest.raises(cs.PlanError, match="--require encoder"):
        loaded("file.pth", require=["encoder"])


def test_another_vocabulary(files: nn.Module) -> None:  # RuntimeError with the model half loaded | 9
    with pytest.raises(cs.PlanError) as caught:
        loaded("file.pth", "dst7.yaml")
    assert caught.value.exit_code == 4
    assert not Path("out.safetensors").exists()
    assert loaded("file.pth", "dst7.yaml", on_mismatch="init") == 9


def test_a_destination_without_bn() -> None:  # RuntimeError | 7 of 7
    assert loaded("file.pth", "nobn.yaml") == 7
    plan = cs.transplant("file.pth", "nobn.yaml")
    assert {key.split(".")[0] for _, key in plan.unexpected} == {"bn"}
    with pytest.raises(cs.PlanError, match="--strict"):
        loaded("file.pth", "nobn.yaml", strict=True)


def test_an_epoch_among_the_tensors(files: nn.Module) -> None:  # RuntimeError | 12
    torch.save({**files.state_dict(), "epoch": 3}, "file.pth")
    assert loaded("file.pth") == 12
    assert [(e.key, e.value) for e in cs.inspect("file.pth").extras] == [("epoch", 3)]


def test_one_element_into_none_and_back(files: nn.Module) -> None:  # loads / RuntimeError
    state = {**files.state_dict(), "bn.num_batches_tracked": torch.tensor([3])}
    torch.save(state, "file.pth")
    plan = cs.transplant("file.pth", "dst.yaml")
    assert plan.counts == {"copied": 11, "reshaped": 1}
    assert loaded("file.pth") == 12


def test_half_precision_is_cast_and_counted(files: nn.Module) -> None:  # cast
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in files.state_dict().items()}, "file.pth")
    assert loaded("file.pth") == 12
    assert cs.transplant("file.pth", "dst.yaml").counts == {"copied": 1, "cast": 11}


def test_several_specs_later_over_earlier(files: nn.Module) -> None:
    torch.save({k: v + 1 for k, v in files.state_dict().items()}, "other.pth")
    plan = cs.transplant(["file.pth", "other.pth:decoder:decoder"], "dst.yaml")
    cs.apply(plan, "out.safetensors")
    found = cs.open_checkpoint("out.safetensors")
    state = files.state_dict()
    assert torch.equal(found.tensor("encoder.weight"), state["encoder.weight"])
    assert torch.equal(found.tensor("decoder.out.weight"), state["decoder.out.weight"] + 1)


def test_a_path_that_exists_wins_over_a_reading_of_its_colons(files: nn.Module) -> None:
    torch.save(files.state_dict(), "a:b:c.pth")
    assert loaded("a:b:c.pth") == 12
    assert loaded("a:b:c.pth:decoder:decoder") == 3


def test_a_missing_file_is_named_without_its_fields() -> None:
    with pytest.raises(cs.SourceError, match=r"nothing.pth does not exist"):
        loaded("nothing.pth:decoder:decoder")


def test_a_spec_is_recorded_and_named_as_the_rule() -> None:
    made = cs.transplant("file.pth:decoder:decoder:decoder.embed", "dst.yaml")
    assert made.arguments["specs"] == [{"src_key": "decoder", "dst_key": "decoder", "exclude_keys": ["decoder.embed"]}]
    moved = cs.transplant("file.pth:encoder2:encoder", "dst.yaml")
    rules = {step.key: step.rule for step in moved.steps}
    assert rules["encoder.weight"] == "file.pth:encoder2:encoder"
    assert rules["bn.weight"] == "not under src_key encoder2"


@pytest.mark.parametrize(
    ("spec", "note"),
    [
        ("file.pth:::bn.", ""),
        ("file.pth:::enc", "takes encoder, encoder2, by prefix; --exclude encoder is the exact form"),
    ],
)
def test_the_exact_form_is_one_that_works(spec: str, note: str) -> None:
    found = [line for line in said(spec).splitlines() if "exact form" in line]
    assert (note in found[0]) if note else not found


def test_a_source_key_is_no_pattern() -> None:
    with pytest.raises(cs.PatternError, match=r"src_key dec\* matches none") as caught:
        cs.transplant("file.pth:dec*:decoder", "dst.yaml")
    assert "**" not in caught.value.hint


def test_what_a_source_key_leaves_is_not_missing() -> None:
    made = cs.transplant("file.pth:decoder:decoder", "dst.yaml", strict=True)
    assert made.counts == {"copied": 3, "initialised": 9}
