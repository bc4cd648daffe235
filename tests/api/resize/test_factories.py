"""Networks of the user's code and bundled ones are resized as those of transformers are."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

CODE = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x):
        return x + self.down_proj(nn.functional.gelu(self.up_proj(self.norm(x))))

class Net(nn.Module):
    def __init__(self, hidden_size, intermediate_size=24, num_layers=2, outputs=5):
        super().__init__()
        self.embed = nn.Embedding(20, hidden_size)
        self.layers = nn.ModuleList(Layer(hidden_size, intermediate_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, outputs)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
"""
IDS = torch.arange(20)


@pytest.fixture(autouse=True)
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Write a package with a network, its configuration and its weights, and return the package."""
    (tmp_path / "own_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    found = importlib.import_module("own_net")
    torch.manual_seed(0)
    model = found.Net(16)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn_like(one) * 0.1)
    save_file(model.state_dict(), "net.safetensors")
    Path("net.yaml").write_text("model: {_target_: own_net.Net, hidden_size: 16}\n")
    return found


def outputs(net: Any, path: str, **fields: int) -> torch.Tensor:
    model = net.Net(**{"hidden_size": 16, **fields})
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS)
    return found


@pytest.mark.parametrize(
    ("fields", "more", "is_equal"),
    [
        ({"intermediate_size": 40}, {}, True),
        ({"intermediate_size": 40}, {"new_channels": "copy", "noise": 0.3}, True),
        ({"intermediate_size": 12}, {}, False),
        ({"hidden_size": 32}, {}, True),
        ({"num_layers": 4}, {"layers": "repeat"}, False),
        ({"num_layers": 3}, {"layers": "0..1,1"}, False),
        ({"hidden_size": 32, "intermediate_size": 48}, {}, True),
    ],
)
def test_a_network_of_own_code_computes_the_same(
    fields: dict[str, int], more: dict[str, Any], is_equal: bool, net: Any
) -> None:
    plan = cs.resize("net.safetensors", config="net.yaml", set=fields, **more)
    said = "the outputs may change (--prove compares them)" if is_equal else "the outputs change"
    assert any(note.endswith(said) for note in plan.notes), plan.notes
    rows = ", ".join(f"{name}: {value}" for name, value in fields.items())
    assert any(note.startswith(f"the output fits net.yaml with {rows}: ") for note in plan.notes), plan.notes
    cs.apply(plan, "out.safetensors")
    assert cs.verify("out.safetensors").ok
    before, after = outputs(net, "net.safetensors"), outputs(net, "out.safetensors", **fields)
    assert ((before - after).abs().max() < 1e-5 * before.abs().max()) == is_equal


def test_a_plan_that_is_applied_later_builds_the_larger_network(net: Any) -> None:
    plan = cs.resize("net.safetensors", config="net.yaml", set={"intermediate_size": 40})
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(cs.load_plan("plan.json"), "later.safetensors")
    cs.apply(plan, "now.safetensors")
    later, now = (load_file(f"{one}.safetensors") for one in ("later", "now"))
    assert later.keys() == now.keys()
    assert all(torch.equal(later[key], now[key]) for key in now)


@pytest.mark.parametrize(
    ("fields", "more", "why"),
    [
        ({"outputs": 7}, {}, r"it is not known how head\.weight, head\.bias change with outputs"),
        ({"hidden_size": 24}, {}, "subtracts the mean"),
        ({"hidden": 24}, {}, "unexpected keyword argument|hidden"),
        ({"vocab_size": 24}, {}, "--set vocab_size is only for networks of transformers|set"),
        ({"num_layers": 4}, {"layers": "identity"}, "it is not known which tensors of layers.0"),
        ({"num_layers": 1}, {"model_type": "llama"}, "only for networks of transformers"),
        ({}, {"tokenizer": "t"}, "only for networks of transformers"),
    ],
)
def test_what_cannot_be_is_an_error(fields: dict[str, int], more: dict[str, Any], why: str) -> None:
    with pytest.raises((cs.ConfigError, cs.PlanError), match=why):
        cs.resize("net.safetensors", config="net.yaml", set=fields, **more)


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_code_that_computes_with_values_of_parameters_is_an_error(net: Any) -> None:
    text = CODE.replace(
        "        self.head =", "        self.scale = self.embed.weight.max().item()\n        self.head ="
    )
    Path("own_net.py").write_text(text)
    del sys.modules["own_net"]
    with pytest.raises(cs.ConfigError, match="cannot be built without memory for its parameters: .*meta"):
        cs.resize("net.safetensors", config="net.yaml", set={"intermediate_size": 40})


@pytest.mark.long
def test_a_bundled_network_gets_more_layers(ckpt: Any) -> None:
    Path("tokens.txt").write_text("".join(f"{one}\n" for one in ("<blank>", "<unk>", *"abcde", "<sos/eos>")))
    sizes = "d_model: 32, heads: 2, encoder_layers: 2, decoder_layers: 1, n_mels: 20"
    Path("asr.yaml").write_text(f"model: {{name: hybrid_asr, tokens: tokens.txt, {sizes}}}\n")
    target = cs.load_target("asr.yaml")
    tensors = {key: torch.randn(info.shape) for key, info in target.tensors.items() if info.dtype == "float32"}
    whole = {key: torch.zeros(info.shape, dtype=torch.int64) for key, info in target.tensors.items() if info.dtype != "float32"}  # fmt: skip
    save_file({**tensors, **whole}, "asr.safetensors")
    plan = cs.resize("asr.safetensors", config="asr.yaml", set={"encoder_layers": 3}, layers="0,1,1")
    cs.apply(plan, "out.safetensors")
    Path("deep.yaml").write_text(Path("asr.yaml").read_text().replace("encoder_layers: 2", "encoder_layers: 3"))
    assert cs.fits("out.safetensors", "deep.yaml").strict
    for asked, said in (
        ({"d_model": 64}, "with d_model=64 and heads=2, the size of each head would change. Add --set heads=4."),
        ({"d_model": 64, "heads": 3}, "with d_model=64 and heads=3, the size of each head would change. Use --set heads=4."),
    ):  # fmt: skip
        with pytest.raises(cs.ConfigError) as caught:
            cs.resize("asr.safetensors", config="asr.yaml", set=asked)
        assert said in caught.value.said
