"""Loading into a live module: by the same rules, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable
from logging import LogRecord
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.engine import live_modules as memory

from ..helpers.transformers_models import BERT, MIXTRAL, WAV2VEC2, model_of, same, saved


class Net(nn.Module):
    def __init__(self, vocab: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 4)
        self.encoder = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, vocab, bias=False)
        self.out.weight = self.embed.weight
        self.encoder.bias.requires_grad_(False)


def state(net: nn.Module) -> dict[str, Any]:
    return {key: (value.clone(), value.requires_grad) for key, value in net.state_dict(keep_vars=True).items()}


def unchanged(net: nn.Module, before: dict[str, Any]) -> bool:
    after = state(net)
    same = all(torch.equal(after[k][0], v) and after[k][1] == flag for k, (v, flag) in before.items())
    return same and net.out.weight is net.embed.weight  # type: ignore[union-attr]


def source(**change: Any) -> Net:
    torch.manual_seed(1)
    net = Net(**change)
    net.norm.num_batches_tracked += 3
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 1}, "src.pth")
    return net


def test_a_module_is_loaded_and_the_plan_tells() -> None:
    theirs, ours = source(), Net()
    plan = cs.load_into(ours, "src.pth")
    assert plan.counts == {"copied": 9}
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.out.weight is ours.embed.weight
    assert not ours.encoder.bias.requires_grad
    assert ours.encoder.weight.requires_grad


def test_what_no_source_gives_keeps_its_values() -> None:
    theirs, ours = source(), Net()
    before = ours.encoder.weight.clone()
    plan = cs.load_into(ours, "src.pth", exclude=["encoder"])
    assert plan.counts == {"copied": 7, "kept": 2}
    assert torch.equal(ours.encoder.weight, before)
    assert torch.equal(ours.norm.running_mean, theirs.norm.running_mean)  # type: ignore[arg-type]


def test_what_no_source_gives_is_named_and_logged(logged: list[LogRecord]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    torch.save({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, "one.pth")
    said = "2 tensors of Sequential are in no source and keep their values: 1.weight, 1.bias"
    plan = cs.load_into(net, "one.pth")
    assert plan.notes == (said,)
    assert [record.getMessage() for record in logged] == [said]
    assert "not in the source: 1.weight, 1.bias" in repr(plan)
    assert plan.absent == ("1.weight", "1.bias")


def test_what_is_not_used_of_a_source_is_named_and_logged(logged: list[LogRecord]) -> None:
    given = {"weight": torch.ones(2, 2), "bias": torch.ones(2), **{f"more.{n}": torch.ones(1) for n in range(7)}}
    said = "7 tensors of <dict> are not used: more.0, more.1, more.2, more.3, more.4, and 2 more"
    assert cs.load_into(nn.Linear(2, 2), given).notes == (said,)
    assert [record.getMessage() for record in logged] == [said]
    assert not cs.load_into(nn.Linear(2, 2), given, exclude=["more"]).notes


def test_factors_of_an_adapter_that_are_not_used_are_called_so() -> None:
    base = {"lin.base_layer.weight": torch.ones(2, 2), "lin.base_layer.bias": torch.ones(2)}
    factors = {f"lin.lora_{name}.default.weight": torch.ones(2, 2) for name in "AB"}
    (note,) = cs.load_into(nn.ModuleDict({"lin": nn.Linear(2, 2)}), base | factors, map={"**.base_layer": "**"}).notes
    assert note.startswith("2 tensors of <dict> are not used: lin.lora_A.default.weight, lin.lora_B.default.weight;")
    assert note.endswith("these are factors of an adapter: merge it first, or the weights are those of its base")


def test_what_options_leave_out_is_not_logged(logged: list[LogRecord]) -> None:
    source()
    plan = cs.load_into(Net(), "src.pth", exclude=["encoder"])
    assert not any("in no source" in note for note in plan.notes)
    assert not plan.absent
    assert not logged
    assert "not in the source" not in repr(plan)


def test_a_mismatch_changes_nothing() -> None:
    source(vocab=7)
    ours = Net()
    before = state(ours)
    with pytest.raises(cs.PlanError, match="shape mismatch"):
        cs.load_into(ours, "src.pth")
    assert unchanged(ours, before)


@pytest.mark.parametrize("fault", ["checksum", "cut short", "ties differ"])
def test_a_fault_half_way_changes_nothing(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = source(), Net()
    before = state(ours)
    if fault == "ties differ":
        save_file({k: v.clone() + (k == "out.weight") for k, v in theirs.state_dict().items()}, "src.pth")
    elif fault == "checksum":
        data = bytearray(Path("src.pth").read_bytes())
        data[data.rindex(theirs.norm.running_var.numpy().tobytes())] ^= 1  # type: ignore[union-attr,operator]
        Path("src.pth").write_bytes(bytes(data))
    else:
        from ckptsurgeon.engine import live_modules as memory

        real = memory._read
        calls: list[int] = []

        def fails(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise cs.SourceError("the file ended")
            return real(*args)

        monkeypatch.setattr(memory, "_read", fails)
    with pytest.raises(cs.CheckpointError):
        cs.load_into(ours, "src.pth")
    assert unchanged(ours, before)


def test_policies_and_casts_are_those_of_a_transplant() -> None:
    theirs = source(vocab=7)
    ours = Net().half()
    plan = cs.load_into(ours, "src.pth", on_mismatch="slice")
    assert plan.counts == {"copied": 1, "cast": 6, "resized": 2}
    assert torch.equal(ours.embed.weight, theirs.embed.weight[:5].half())
    bigger = Net(vocab=9)
    before = bigger.embed.weight.detach().clone()
    cs.load_into(bigger, "src.pth", on_mismatch="pad")
    assert torch.equal(bigger.embed.weight[:7], theirs.embed.weight)
    assert torch.equal(bigger.embed.weight[7:], before[7:])


def test_rules_gates_and_several_sources() -> None:
    theirs = source()
    save_file({"enc.weight": torch.ones(4, 4)}, "enc.safetensors")
    ours = Net()
    plan = cs.load_into(ours, ["src.pth", "enc.safetensors"], map=["enc=encoder"])
    assert torch.equal(ours.encoder.weight, torch.ones(4, 4))
    assert torch.equal(ours.encoder.bias, theirs.encoder.bias)
    assert len(plan.sources) == 3
    with pytest.raises(cs.PlanError, match="require=.encoder."):
        cs.load_into(ours, "src.pth", exclude=["encoder"], require=["encoder"])
    with pytest.raises(cs.PlanError, match="strict=True: missing"):
        cs.load_into(ours, "enc.safetensors", map=["enc=encoder"], strict=True)


def test_a_plan_for_a_live_module_cannot_be_written() -> None:
    source()
    plan = cs.load_into(Net(), "src.pth")
    with pytest.raises(cs.PlanError, match="live module"):
        cs.apply(plan, "out.safetensors")


def test_a_module_without_tensors_is_usage() -> None:
    source()
    with pytest.raises(cs.ConfigError, match="has no tensors"):
        cs.load_into(nn.ReLU(), "src.pth")


def test_values_that_become_infinite_are_said(logged: list[LogRecord]) -> None:
    save_file({"weight": torch.tensor([[1e6, 2.0]]), "bias": torch.tensor([1.0])}, "wide.safetensors")
    plan = cs.load_into(nn.Linear(2, 1).half(), "wide.safetensors")
    assert "1 value of weight became infinite or NaN" in plan.notes
    assert [record.getMessage() for record in logged] == ["1 value of weight became infinite or NaN"]


def test_values_that_become_zero_are_said() -> None:
    save_file({"weight": torch.tensor([[1e-9, 2.0]]), "bias": torch.tensor([1.0])}, "wide.safetensors")
    plan = cs.load_into(nn.Linear(2, 1).half(), "wide.safetensors")
    assert "1 of 2 values of weight became zero" in plan.notes


def test_what_cannot_be_written_in_place_is_refused_before_anything_is() -> None:
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "lin.safetensors")

    class Copies(nn.Linear):
        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            destination[f"{prefix}weight"] = self.weight.detach().clone()

    expanded = nn.Linear(2, 3)
    expanded.weight = nn.Parameter(torch.zeros(1, 2).expand(3, 2))
    for model, why in (
        (nn.Linear(2, 3, device="meta"), "have no storage"),
        (expanded, "elements of a tensor share memory .*: weight"),
        (Copies(2, 3), "returns copies of weight"),
        (nn.LazyLinear(3), "only known after a forward pass"),
        ({}, "the model is a dict, not an nn.Module. Pass the module itself."),
        (nn.Linear, "not an nn.Module. Call it, and pass the module that it returns."),
        (nn.ReLU(), "has no tensors"),
    ):
        with pytest.raises(cs.ConfigError, match=why):
            cs.load_into(model, "lin.safetensors")  # type: ignore[arg-type]
    assert expanded.bias.sum() != 3


def _with_buffer() -> nn.Module:
    net = nn.Linear(2, 2)
    net.register_buffer("freqs", torch.ones(2), persistent=False)
    return net


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("build", "harm"),
    [
        (_with_buffer, r"leave buffers undefined that are in no checkpoint \(freqs\)"),
        (_tied, r"untie tensors \(1.weight\)"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="cpu")),
            r"discard the values of tensors that have storage .1.weight",
        ),
    ],
    ids=["buffer", "tied", "half"],
)
def test_to_empty_is_advised_only_if_it_loses_nothing(build: Callable[[], nn.Module], harm: str) -> None:
    with torch.device("meta"):
        model, plain = build(), nn.Linear(2, 2)
    source = {key: torch.ones(value.shape) for key, value in model.state_dict().items()}
    with pytest.raises(cs.ConfigError, match=rf"on the CPU instead. model.to_empty\(…\) would {harm}") as said:
        cs.load_into(model, source)
    assert said.value.details == tuple(key for key, value in model.state_dict().items() if value.is_meta)
    with pytest.raises(cs.ConfigError, match="model.to_empty.device='cpu'.. Then use on_missing=\"error\""):
        cs.load_into(plain, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_a_cast_that_fails_has_no_hint_of_the_option_dtype(dtype: torch.dtype) -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)})
    with pytest.raises(cs.PlanError, match=r"dtype mismatch: .* Leave it out with exclude\.$"):
        cs.load_into(model, {"a": torch.ones(2, dtype=dtype)})


def test_casts_into_memory_that_the_module_has_are_not_called_growth() -> None:
    given = {"weight": torch.ones(2, 2).half(), "bias": torch.ones(2).half()}
    assert not cs.load_into(nn.Linear(2, 2), given).notes


def test_a_list_of_an_error_that_is_cut_names_the_details() -> None:
    with pytest.raises(cs.ConfigError) as said:
        cs.load_into(nn.Sequential(*(nn.Linear(2, 2, device="meta") for _ in range(4))), {"0.weight": torch.ones(2, 2)})
    assert "2.weight, and 3 more (details lists all)" in str(said.value)
    assert len(said.value.details) == 8
    assert "--json lists all" in said.value.message


def test_a_write_that_fails_half_way_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source()
    ours = Net()
    before, real, written = state(ours), memory._set, list[int]()

    def failing(tensor: torch.Tensor, values: torch.Tensor) -> None:
        written.append(1)
        real(tensor, values)
        if len(written) == 3:
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(memory, "_set", failing)
    with pytest.raises(cs.PlanError, match="cannot be written: the device is gone"):
        cs.load_into(ours, "src.pth")
    assert len(written) == 6
    assert unchanged(ours, before)


def test_tensors_made_in_inference_mode_are_loaded() -> None:
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "lin.safetensors")
    with torch.inference_mode():
        model = nn.Linear(2, 3)
    cs.load_into(model, "lin.safetensors")
    assert model.weight.sum() == 6


def test_a_record_that_many_tensors_share_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.arange(60.0)
    torch.save({f"w{i}": flat[i * 10 : i * 10 + 10] for i in range(6)}, "views.pth")
    checked = list[int]()
    monkeypatch.setattr(memory, "check_storage", lambda file, storage: checked.append(storage.nbytes))
    model = nn.ParameterDict({f"w{i}": torch.zeros(10) for i in range(6)})
    cs.load_into(model, "views.pth")
    assert checked == [240]
    assert torch.equal(model["w3"], flat[30:40])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_an_input_has_that_is_not_finite_is_said_of_a_cast(dtype: torch.dtype) -> None:
    values = torch.ones(4, 4)
    values[0, 0], values[1, 2] = float("nan"), float("inf")
    save_file({"weight": values, "bias": torch.ones(4)}, "nan.safetensors")
    plan = cs.load_into(nn.Linear(4, 4).to(dtype), "nan.safetensors")
    assert plan.notes[-1] == "NaN and infinite values come from the inputs: weight (2 values)"
    (note,) = cs.load_into(nn.Linear(4, 4), "nan.safetensors").notes
    assert note == "nan.safetensors: 1 small tensor has NaN or infinite values: weight"


def test_what_a_cast_makes_infinite_does_not_come_from_the_inputs() -> None:
    save_file({"weight": torch.full((4, 4), 1e30), "bias": torch.ones(4)}, "large.safetensors")
    plan = cs.load_into(nn.Linear(4, 4).half(), "large.safetensors")
    assert plan.notes == ("16 values of weight became infinite or NaN",)


LLAMA = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50,
}  # fmt: skip


@pytest.mark.parametrize("given", ["a", "a/model.safetensors"])
@pytest.mark.parametrize(
    ("fields", "architecture"),
    [(LLAMA, "LlamaForCausalLM"), (BERT, "BertForSequenceClassification"), (WAV2VEC2, "Wav2Vec2ForCTC")],
    ids=["llama", "bert", "wav2vec2"],
)
def test_a_folder_is_loaded_into_a_live_model_of_transformers(
    fields: dict[str, Any], architecture: str, given: str
) -> None:
    pytest.importorskip("transformers")
    theirs, ours = saved("a", fields, architecture), model_of(fields, architecture)
    assert not cs.load_into(ours, given, strict=True).notes
    same(ours, theirs)


def test_experts_that_a_folder_has_one_by_one_are_stacked_in_a_live_model() -> None:
    pytest.importorskip("transformers")
    theirs, ours = saved("a", MIXTRAL, "MixtralForCausalLM"), model_of(MIXTRAL, "MixtralForCausalLM")
    plan = cs.load_into(ours, "a", strict=True)
    assert plan.counts["derived"] == 4
    assert any("made from older tensors" in note for note in plan.notes)
    same(ours, theirs)


def test_the_base_model_of_a_folder_is_loaded_into_a_live_model_with_a_head() -> None:
    pytest.importorskip("transformers")
    theirs, ours = saved("a", BERT, "BertModel"), model_of(BERT, "BertForSequenceClassification")
    cs.load_into(ours, "a")
    same(ours, theirs, "bert.")


def test_labels_of_a_live_model_are_compared_with_those_of_the_folder() -> None:
    pytest.importorskip("transformers")
    saved("a", BERT, "BertForSequenceClassification", id2label={0: "neg", 1: "pos"})
    ours = model_of(BERT, "BertForSequenceClassification", id2label={0: "pos", 1: "neg"})
    (note,) = cs.load_into(ours, "a").notes
    assert (
        "row 0 of classifier.weight has different labels (id2label): neg in a, pos in BertForSequenceClassification"
        in note
    )


@pytest.mark.parametrize("config", [{"id2label": {0: "neg", (1,): "pos"}}, {"id2label": {}, "itself": ...}, None])
def test_whatever_a_live_model_has_as_its_configuration_it_is_loaded(config: Any) -> None:
    if config and "itself" in config:
        config["itself"] = config
    source()
    ours = Net()
    ours.config = type("Config", (), {"to_dict": lambda _: config})()  # type: ignore[assignment]
    Path("config.json").write_text("{}")
    assert cs.load_into(ours, "src.pth").counts == {"copied": 9}


def test_hints_name_arguments_that_work() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    compiled = nn.ModuleDict({"_orig_mod": net})  # the names that torch.compile gives
    values = {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}
    for module, rule in ((nn.DataParallel(net), "=module"), (compiled, "=_orig_mod")):
        with pytest.raises(cs.PlanError, match="nothing would be loaded") as caught:
            cs.load_into(module, values)
        assert f'map="{rule}" would match 2 of 2 tensors.' in str(caught.value)
        assert cs.load_into(module, values, map=rule).counts["copied"] == 2
    model = nn.ModuleDict({"ctc": nn.Linear(4, 14), "e": nn.Linear(4, 4)})
    small = nn.ModuleDict({"ctc": nn.Linear(4, 11), "e": nn.Linear(4, 4)}).state_dict()
    with pytest.raises(cs.PlanError, match="shape mismatch") as caught:
        cs.load_into(model, small)
    hint = 'Use on_mismatch="ctc=init" (or pad, overlap, interpolate), or exclude="ctc".'
    assert hint in str(caught.value)
    assert cs.load_into(model, small, on_mismatch="ctc=init").counts["copied"] == 2
    assert cs.load_into(model, small, exclude="ctc").counts["copied"] == 2
    notes = cs.load_into(model, small, on_mismatch="ctc=pad").notes
    assert any("by position, not by token" in note for note in notes)
    assert not any("vocab" in note for note in notes)  # load_into has no such argument
    turned = {"ctc.weight": torch.zeros(4, 14), "ctc.bias": torch.zeros(14)}
    with pytest.raises(
        cs.PlanError, match=r"Transpose with ckpt rename --operations, as in - {transpose: 'ctc\.weight'}"
    ):
        cs.load_into(model, turned)
    notes = cs.load_into(model, turned, on_mismatch="init").notes
    assert any("Transpose with ckpt rename --operations" in note for note in notes)


def test_a_module_that_keeps_its_values_is_left_out_of_loadables() -> None:
    Path("there").mkdir()
    torch.save(nn.Linear(4, 5).state_dict(), "there/head.ckpt")
    pretrainer = cs.Pretrainer("collected", {"head": nn.Linear(4, 6)})
    pretrainer.collect_files("there")
    with pytest.raises(cs.PlanError, match="nothing would be loaded") as caught:
        pretrainer.load_collected({"head": {"on_mismatch": "init"}})
    assert str(caught.value).endswith(
        'They are not loaded because of on_mismatch="init" (2). If head is to keep its own values, leave it out of '
        "loadables."
    )
