"""``inspect`` of one of PEFT's adapters says what it is, whatever its configuration holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.adapter_settings import adapter_settings

from ...helpers.adapters import factors, peft_folder
from ...helpers.hub.server import Hub

SAID = {
    "r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/model", "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"layers.0.q_proj": 4}, "alpha_pattern": {"v_proj": 2.5}, "use_rslora": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def adapter() -> None:
    a, b = factors(8, 8)
    peft_folder("lora", {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}, **SAID)


def printed(ckpt: Any, path: str = "lora", *options: str) -> str:
    done = ckpt("inspect", path, *options)
    assert done.code == 0, done.err
    return " ".join((done.out + done.err).split())


def configured(text: str | bytes) -> None:
    Path("lora/adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("path", ["lora", "lora/adapter_model.safetensors"])
def test_an_adapter_says_its_rank_its_alpha_and_what_it_is_for(path: str, ckpt: Any) -> None:
    wanted = (
        "adapter LoRA, rank 8 (layers.0.q_proj: 4), alpha 16 (v_proj: 2.5), scaled by alpha / sqrt(rank), "
        "2 target modules (q_proj, v_proj), base org/model"
    )
    assert wanted in printed(ckpt, path)
    assert json.loads(ckpt("inspect", path, "--json").out)["adapter"] == {
        "peft_type": "LORA", "rank": 8, "rank_pattern": {"layers.0.q_proj": 4}, "alpha": 16,
        "alpha_pattern": {"v_proj": 2.5}, "base_model": "org/model", "target_modules": ["q_proj", "v_proj"],
        "use_dora": False, "use_rslora": True, "modules": None,
    }  # fmt: skip


def test_what_is_no_adapter_has_none(ckpt: Any) -> None:
    save_file({"a": torch.ones(1)}, "lora/model.safetensors")
    Path("lora/adapter_model.safetensors").unlink()
    for path in ("lora", "lora/model.safetensors"):
        assert json.loads(ckpt("inspect", path, "--json").out)["adapter"] is None
        assert "adapter" not in printed(ckpt, path).replace("adapter_config", "")


def test_the_adapter_of_a_trainer_s_folder_is_read(ckpt: Any) -> None:
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"a": torch.ones(1)}, f"lora/{name}")
    said = printed(ckpt)
    assert "adapter LoRA, rank 8" in said
    assert "read adapter_model.safetensors; also in the folder: optimizer.pt, and 2 more" in said


def test_what_torch_saved_is_an_adapter_too() -> None:
    a, b = factors(8, 8)
    Path("lora/adapter_model.safetensors").unlink()
    torch.save({"base_model.model.q.lora_A.weight": a, "base_model.model.q.lora_B.weight": b}, "lora/adapter_model.bin")
    found = cs.inspect("lora").adapter
    assert found is not None
    assert found.rank == 8


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3", "target_modules": ["k"]}, "PEFT's IA3, 1 target module (k), base not given"),
        ({"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "m"}, "PEFT's PREFIX_TUNING, base m"),
        ({"peft_type": "LORA", "use_dora": True, "r": 2, "lora_alpha": 0.5}, "DoRA, rank 2, alpha 0.5, base"),
        ({"peft_type": "LORA"}, "LoRA, rank not given, alpha not given, base not given"),
        ({"peft_type": "LORA", "target_modules": "all-linear"}, "1 target module (all-linear)"),
        ({"peft_type": "LOHA", "r": 3}, "PEFT's LOHA, rank 3, base"),
    ],
)
def test_other_kinds_are_named(config: dict[str, Any], says: str, ckpt: Any) -> None:
    configured(json.dumps(config))
    assert f"adapter {says}" in printed(ckpt) or says in printed(ckpt)


def test_many_modules_are_cut_short_and_v_lists_all(ckpt: Any) -> None:
    configured(json.dumps({"peft_type": "LORA", "target_modules": [f"m{i}" for i in range(40)]}))
    assert "40 target modules (m0, m1, m2, m3, and 36 more (-v lists all))" in printed(ckpt)
    assert "m38, m39)" in printed(ckpt, "lora", "-v")


NEVER = "\x1b[31m\u202e"
UNSOUND: dict[str, str | bytes] = {
    "wrong types": json.dumps(
        {"peft_type": "LORA", "r": "8", "lora_alpha": [1], "target_modules": {"a": 1}, "rank_pattern": [1], "alpha_pattern": "x", "base_model_name_or_path": 5, "use_dora": "yes"}
    ),
    "odd numbers": '{"peft_type": "LORA", "r": -1, "lora_alpha": NaN, "rank_pattern": {"a": true}, "alpha_pattern": {"a": 1e999}}',
    "a number of many digits": '{"peft_type": "LORA", "r": 1%s}' % ("0" * 4000),
    "names that steer": json.dumps({"peft_type": NEVER, "base_model_name_or_path": NEVER, "target_modules": [NEVER, 5, None]}),
    "long names": json.dumps({"peft_type": "x" * 9000, "base_model_name_or_path": "y" * 9000, "target_modules": ["z" * 9000] * 1200}),
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("kind", UNSOUND)
def test_a_configuration_of_any_types_is_no_fault(kind: str, ckpt: Any) -> None:
    configured(UNSOUND[kind])
    said = printed(ckpt)
    assert said.isprintable()
    answer = ckpt("inspect", "lora", "--json").out
    found = json.loads(answer, parse_constant=pytest.fail)["adapter"]
    assert (found["rank"], found["alpha"], found["rank_pattern"], found["alpha_pattern"]) == (None, None, {}, {})
    assert len(said) < 3000
    assert len(answer) < 600_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        (b"\xff\xfe", "can't decode byte"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "it has no peft_type"),
        ('{"r": 8}', "it has no peft_type"),
        ('{"r": 8, "r": 9}', "occurs twice"),
        (b" " * (17 << 20), "it is too large: 17825792 bytes"),
    ],
)
def test_a_configuration_that_is_not_understood_is_a_note(text: str | bytes, why: str, ckpt: Any) -> None:
    configured(text)
    found = cs.inspect("lora")
    assert found.adapter is not None
    assert (found.adapter.modules, found.adapter.alpha) == (1, None)  # what the keys show
    assert any(note.startswith("adapter_config.json cannot be used: ") and why in note for note in found.notes)
    assert "cannot be used" in printed(ckpt)


def test_an_adapter_at_an_address_says_so_too(hub: Hub) -> None:
    files = {path.name: path.read_bytes() for path in Path("lora").iterdir()}
    hub.repository("org/lora", files)
    for address in ("hf://org/lora", hub.file("net/adapter_model.safetensors", files["adapter_model.safetensors"])):
        if address.startswith("http"):
            by_keys = cs.inspect(address).adapter
            assert by_keys is not None
            assert by_keys.modules == 1
            hub.file("net/adapter_config.json", files["adapter_config.json"])
        found = cs.inspect(address).adapter
        assert found is not None
        assert (found.rank, found.base_model) == (8, "org/model")


@pytest.mark.long
def test_nothing_heavy_is_loaded_for_it() -> None:
    code = "import sys, ckptsurgeon as cs; cs.inspect('lora'); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("data", [None, [], 5, "LORA", {}, {"peft_type": 5}, {"peft_type": ""}])
def test_what_names_no_kind_is_no_adapter(data: object) -> None:
    assert adapter_settings(data) is None


def test_a_kept_plan_holds_the_configuration_of_an_adapter_at_an_address(hub: Hub) -> None:
    def configuration(alpha: int) -> bytes:
        return json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}).encode()

    address = hub.file("net/adapter_model.safetensors", Path("lora/adapter_model.safetensors").read_bytes())
    hub.file("net/adapter_config.json", configuration(16))
    save_file({"layers.0.q.weight": torch.ones(8, 8)}, "base.safetensors")
    Path("p.json").write_text(json.dumps(cs.lora_merge("base.safetensors", address).to_json()))
    cs.apply("p.json", "before.safetensors")
    hub.file("net/adapter_config.json", configuration(32))
    with pytest.raises(cs.PlanError, match="net/adapter_config.json has changed since the plan"):
        cs.apply("p.json", "after.safetensors")
    assert not Path("after.safetensors").exists()


def three_layers(*lost: str) -> list[str]:
    """Write an adapter of three layers without the factors of some modules; return the notes on it."""
    a, b = factors(8, 8)
    names = [f"layers.{n}.attn.{one}" for n in range(3) for one in ("q_proj", "v_proj")]
    state = {
        f"{name}.lora_{end}.weight": one for name in names if name not in lost for end, one in (("A", a), ("B", b))
    }
    settings = {**SAID, "r": 2, "rank_pattern": {}, "alpha_pattern": {}}
    peft_folder("three", state, **settings)
    return [note for note in cs.inspect("three").notes if "without factors" in note]


def test_a_layer_without_the_factors_of_a_module_is_noted() -> None:
    (note,) = three_layers("layers.1.attn.q_proj")
    said = "selects 1 module without factors, although the same module has factors in most other layers: layers.1.attn.q_proj"
    assert note.endswith(said)


@pytest.mark.parametrize("lost", [(), ("layers.2.attn.v_proj",), ("layers.1.attn.q_proj", "layers.1.attn.v_proj")])
def test_last_layers_without_values_and_layers_without_attention_are_not(lost: tuple[str, ...]) -> None:
    assert not three_layers(*lost)


@pytest.mark.parametrize(("name", "value"), [("lora_alpha", None), ("r", 0), ("rank_pattern", {"q": None})])
def test_settings_that_lora_merge_cannot_read_are_noted(name: str, value: object) -> None:
    settings = json.loads(Path("lora/adapter_config.json").read_text())
    configured(json.dumps({**settings, name: value}))
    notes = [note for note in cs.inspect("lora").notes if "lora merge cannot use it" in note]
    assert len(notes) == 1
    assert [note for note in cs.convert("lora").notes if "lora merge cannot use it" in note]


def test_settings_that_only_peft_merges_are_not_damaged() -> None:
    settings = json.loads(Path("lora/adapter_config.json").read_text())
    configured(json.dumps({**settings, "peft_type": "LOHA", "lora_alpha": None}))
    assert not [note for note in cs.inspect("lora").notes if "cannot use it" in note]
