"""The loss barrier: what the networks between two networks lose, with and without an alignment."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.prove.barrier import BarrierPoint, LossBarrier
from ckptsurgeon.analysis.prove.proof import ProvedNetwork
from ckptsurgeon.render.prove import barrier_view

transformers = pytest.importorskip("transformers", minversion="5")
Run = Callable[..., Any]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
MLP = """\
model:
  _target_: torch.nn.Sequential
  _args_:
    - {_target_: torch.nn.Linear, in_features: 6, out_features: 16}
    - {_target_: torch.nn.ReLU}
    - {_target_: torch.nn.Linear, in_features: 16, out_features: 5}
"""
GROUPS = {"hidden": {"0.weight": 0, "0.bias": 0, "2.weight": 1}}


def llama(folder: str, seed: int, scale: float = 1.0) -> Any:
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(scale if one.ndim > 1 else 1)
    model.save_pretrained(folder)
    return model


def counting(seed: int) -> torch.Tensor:
    """Return texts that count, each from its own start."""
    start = torch.randint(1, 30, (8, 1), generator=torch.Generator().manual_seed(seed))
    return start + torch.arange(10)


def trained(folder: str) -> None:
    """Save a llama that has learnt to count: on it, a permutation matters."""
    model = llama(folder, 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        ids = counting(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    save_file({"input_ids": counting(1000)}, "counting.safetensors")


def in_another_order(folder: str, into: str) -> None:
    """Write the same llama with its channels, and the dimensions of its residual stream, in another order."""
    state, chance = load_file(f"{folder}/model.safetensors"), torch.Generator().manual_seed(3)
    channels = [torch.randperm(48, generator=chance) for _ in range(2)]
    stream = torch.randperm(32, generator=chance)
    for key, value in state.items():
        kind = key.removesuffix(".weight").rpartition(".")[2]
        if kind in ("gate_proj", "up_proj"):
            value = value[channels[int(key.split(".")[2])]]
        if kind == "down_proj":
            value = value[:, channels[int(key.split(".")[2])]]
        into_stream = kind in ("o_proj", "down_proj") or value.ndim == 1
        state[key] = (value[stream] if into_stream else value[:, stream]).contiguous()
    Path(into).mkdir()
    Path(into, "config.json").write_bytes(Path(folder, "config.json").read_bytes())
    save_file(state, f"{into}/model.safetensors", {"format": "pt"})


def texts(name: str = "texts.safetensors") -> torch.Tensor:
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(5))
    save_file({"input_ids": ids}, name)
    return ids


def mlps() -> None:
    torch.manual_seed(1)
    first, bias, second, last = torch.randn(16, 6), torch.randn(16), torch.randn(5, 16), torch.randn(5)
    order = torch.randperm(16)
    state = {"0.weight": first, "0.bias": bias, "2.weight": second, "2.bias": last}
    torch.save(state, "a.pth")
    moved = {"0.weight": first[order], "0.bias": bias[order], "2.weight": second[:, order], "2.bias": last}
    torch.save(moved, "b.pth")
    Path("mlp.yaml").write_text(MLP)
    save_file({"input": torch.randn(64, 6)}, "batch.safetensors")


@pytest.mark.long
def test_transformers_that_are_permutations_have_a_barrier_only_without_an_alignment() -> None:
    trained("a")
    in_another_order("a", "b")
    plain = cs.loss_barrier("a", "b", inputs="counting.safetensors", points=5)
    assert plain.loss.startswith("cross-entropy of the next token")
    assert plain.barrier > 0.05
    assert 0 < plain.alpha < 1
    assert plain.above_mean == pytest.approx(plain.barrier, abs=1e-5)
    aligned = cs.loss_barrier("a", "b", inputs="counting.safetensors", points=5, align=True)
    assert aligned.aligned
    assert aligned.barrier <= 1e-6
    assert any("channels" in note for note in aligned.notes)


def test_networks_that_are_permutations_have_a_barrier_only_without_an_alignment() -> None:
    mlps()
    plain = cs.loss_barrier("a.pth", "b.pth", model="mlp.yaml", inputs="batch.safetensors")
    assert "squared differences" in plain.loss
    assert plain.points[0].loss <= 1e-12
    assert plain.barrier > 0.05
    aligned = cs.loss_barrier(
        "a.pth", "b.pth", model="mlp.yaml", inputs="batch.safetensors", align=True, align_groups=GROUPS
    )
    assert aligned.barrier <= 1e-6


def test_the_losses_are_those_of_networks_with_interpolated_weights() -> None:
    models = [llama("a", 0, 4), llama("b", 1, 4)]
    ids = texts()
    found = cs.loss_barrier("a", "b", inputs="texts.safetensors", points=5, memory="60KB")
    wanted = []
    for point in found.points:
        made = transformers.LlamaForCausalLM(models[0].config).eval()
        pairs = zip(made.parameters(), *(model.parameters() for model in models), strict=True)
        with torch.no_grad():
            for own, a, b in pairs:
                own.copy_(a + point.alpha * (b - a))
            wanted.append(float(made(input_ids=ids, labels=ids).loss))
    assert [one.alpha for one in found.points] == [0, 0.25, 0.5, 0.75, 1]
    assert [one.loss for one in found.points] == pytest.approx(wanted, rel=1e-4)
    line = [(1 - one.alpha) * wanted[0] + one.alpha * wanted[-1] for one in found.points]
    above = [loss - own for loss, own in zip(wanted, line, strict=True)]
    assert found.barrier == pytest.approx(max(above), abs=1e-3)
    assert found.above_mean == pytest.approx(max(wanted) - (wanted[0] + wanted[-1]) / 2, abs=1e-3)
    assert found.points[0].above == found.points[-1].above == 0
    first, last = found.points[0].loss, found.points[-1].loss
    assert abs(first - last) > 1e-4
    for one in found.points:
        assert one.above == pytest.approx(one.loss - (1 - one.alpha) * first - one.alpha * last, abs=1e-12)


def test_padding_has_no_loss() -> None:
    models = [llama("a", 0, 4), llama("b", 1, 4)]
    ids = texts()
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    save_file({"input_ids": ids, "attention_mask": mask}, "padded.safetensors")
    found = cs.loss_barrier("a", "b", inputs="padded.safetensors", points=3)
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        wanted = [float(one(input_ids=ids, attention_mask=mask, labels=labels).loss) for one in models]
    assert [found.points[0].loss, found.points[-1].loss] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.long
def test_without_labels_predictions_are_compared_with_those_of_both_networks() -> None:
    models = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        sizes = {**SIZES, "num_hidden_layers": 1, "num_labels": 3}
        models.append(transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval())
        models[-1].save_pretrained(name)
    ids = texts()
    found = cs.loss_barrier("a", "b", inputs="texts.safetensors", points=3)
    assert found.loss.startswith("mean of KL(A ‖ network) and KL(B ‖ network)")
    with torch.no_grad():
        a, b = (one(input_ids=ids).logits.double().log_softmax(-1) for one in models)
    apart = [float((x.exp() * (x - y)).sum(-1).mean()) / 2 for x, y in ((b, a), (a, b))]
    assert [found.points[0].loss, found.points[-1].loss] == pytest.approx(apart, rel=1e-3)
    labels = torch.tensor([0, 2, 1])
    save_file({"input_ids": ids, "labels": labels}, "labelled.safetensors")
    labelled = cs.loss_barrier("a", "b", inputs="labelled.safetensors", points=3)
    assert labelled.loss == "the model's own loss for the labels in the inputs"
    with torch.no_grad():
        wanted = [float(one(input_ids=ids, labels=labels).loss) for one in models]
    assert [labelled.points[0].loss, labelled.points[-1].loss] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.long
def test_random_inputs_are_said() -> None:
    llama("a", 0)
    llama("b", 1)
    found = cs.loss_barrier("a", "b", points=3)
    assert found.loss.startswith("mean of KL")
    assert any("the inputs are random" in note for note in found.notes)


NO_USE = "a mean of them is of no use, even if this barrier is low"
BY_LOSSES = "judge a mean of them by its losses, on inputs with labels"


@pytest.mark.costly
@pytest.mark.parametrize("inputs", ["", "texts.safetensors", "labelled.safetensors"])
def test_unrelated_networks_are_said_to_be_unrelated(inputs: str, ckpt: Run) -> None:
    """If two networks have nothing in common, a low barrier of distances does not mean that a merge is useful."""
    llama("a", 0)
    llama("b", 1)
    ids = texts()
    save_file({"input_ids": ids, "labels": ids.clone()}, "labelled.safetensors")
    given = ["--inputs", inputs] if inputs else []
    said = " ".join(ckpt("prove", "a", "b", "--barrier", "--points", "3", *given).err.split())
    assert "warning: the weights of the two networks have hardly anything in common" in said
    assert (NO_USE in said, BY_LOSSES in said) == (not inputs, bool(inputs))


def test_related_networks_are_not_said_to_be_unrelated() -> None:
    llama("a", 0)
    llama("b", 0, 1.1)
    assert not any("hardly anything" in note for note in cs.loss_barrier("a", "b", points=3).notes)


@pytest.mark.long
@pytest.mark.parametrize("related", [False, True])
def test_after_an_alignment_the_cosine_is_a_remark(related: bool, ckpt: Run) -> None:
    """An alignment is for networks that were trained apart: nothing says that it is of no use."""
    llama("a", 0)
    if related:
        in_another_order("a", "b")
    else:
        llama("b", 1)
    said = " ".join(ckpt("prove", "a", "b", "--barrier", "--points", "3", "--align").err.split())
    cosine = re.search(r"note: with B in the order of A, the median cosine of 16 matrices is ([-.\d]+)", said)
    assert cosine is not None, said
    assert float(cosine[1]) == pytest.approx(1 if related else 0.1, abs=1e-6 if related else 0.2)
    assert "hardly anything" not in said
    assert NO_USE not in said


@pytest.mark.long
def test_nothing_is_read_but_the_weights_of_each_run_and_progress_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What relates two networks is computed from the samples of their runs: whole matrices could exceed ``memory``."""
    from ckptsurgeon.api.prove.network import Network

    llama("a", 0)
    model = llama("b", 1)
    reads, steps, read = Counter[tuple[str, str]](), list[tuple[int, int]](), Network.read

    def counted(self: Network, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        reads.update((self.path, key) for key in keys)
        return read(self, keys)

    monkeypatch.setattr(Network, "read", counted)
    found = cs.loss_barrier("a", "b", points=3, memory="60KB", progress=lambda *step: steps.append(step))
    assert any("hardly anything" in note for note in found.notes)
    assert set(reads.values()) == {2}  # at its end of the line, and in the middle
    number = sum(one.numel() for one in model.parameters())
    assert steps[-1] == (4 * number, 4 * number)
    assert len({done for done, _ in steps}) == len(steps) == reads.total()


@pytest.mark.long
def test_it_is_said_whose_configuration_is_used() -> None:
    llama("a", 0)
    Path("alone").mkdir()
    Path("alone/m.safetensors").write_bytes(Path("a/model.safetensors").read_bytes())
    borrowed = "alone/m.safetensors has no config.json: its network is built with the configuration of a"
    assert borrowed in cs.loss_barrier("a", "alone/m.safetensors", points=3).notes
    unused = "both checkpoints have a config.json, so --model is not used"
    assert unused in cs.loss_barrier("a", "a", points=3, model="a/config.json").notes


def test_a_network_has_no_barrier_to_itself() -> None:
    llama("a", 0, 4)
    texts()
    found = cs.loss_barrier("a", "a", inputs="texts.safetensors", points=4)
    assert len({one.loss for one in found.points}) == 1
    assert found.barrier == 0


def test_the_command_shows_the_barrier(ckpt: Run) -> None:
    mlps()
    command = ["prove", "a.pth", "b.pth", "--barrier", "--points", "3", "--model", "mlp.yaml"]
    command += ["--inputs", "batch.safetensors"]
    shown = ckpt(*command)
    assert shown.code == 0
    assert "BARRIER" in shown.out
    assert "at alpha 0.5" in shown.out
    Path("groups.yaml").write_text(json.dumps(GROUPS))
    aligned = ckpt(*command, "--align", "--align-groups", "groups.yaml")
    assert aligned.code == 0
    assert "with B in the order of A" in " ".join(aligned.out.split())
    done = ckpt(*command, "--json")
    answer = json.loads(done.out)
    assert answer["kind"] == "ckpt.barrier"
    assert [one["alpha"] for one in answer["points"]] == [0, 0.5, 1]
    assert answer["barrier"] == max(one["above"] for one in answer["points"])


@pytest.mark.long
def test_what_cannot_be_interpolated_is_an_error() -> None:
    llama("a", 0)
    sizes = {**SIZES, "intermediate_size": 40}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained("narrow")
    with pytest.raises(cs.PlanError, match=r"have different tensors.*mlp\.down_proj"):
        cs.loss_barrier("a", "narrow")
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained("bert")
    with pytest.raises(cs.PlanError, match="is a LlamaForCausalLM, but bert is a BertModel"):
        cs.loss_barrier("a", "bert")
    with pytest.raises(cs.ConfigError, match="points=2 is not a valid number"):
        cs.loss_barrier("a", "a", points=2)
    with pytest.raises(cs.ConfigError, match="only for align=True"):
        cs.loss_barrier("a", "a", align_groups=GROUPS)
    save_file({"input_ids": torch.tensor([[3], [4]])}, "one.safetensors")
    with pytest.raises(cs.ConfigError, match="no next token"):
        cs.loss_barrier("a", "a", inputs="one.safetensors")


@pytest.mark.parametrize("option", [["--points", "5"], ["--align"], ["--align-groups", "x.yaml"]])
def test_options_of_the_barrier_need_it(option: list[str], ckpt: Run) -> None:
    done = ckpt("prove", "a", "b", *option)
    assert done.code == 2
    assert f"{option[0]} is only for --barrier" in " ".join(done.err.split())


def test_an_end_that_is_not_finite_is_an_error_and_a_middle_is_an_infinite_barrier() -> None:
    model = llama("a", 0)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    model.save_pretrained("bad")
    texts()
    with pytest.raises(cs.ConfigError, match="the loss of bad is not finite"):
        cs.loss_barrier("a", "bad", inputs="texts.safetensors")
    network = ProvedNetwork("a", "Net", 1, ("float32",))
    points = (BarrierPoint(0, 1, 0), BarrierPoint(0.5, math.nan, math.nan), BarrierPoint(1, 1, 0))
    found = LossBarrier(network, network, "", "", points)
    assert found.alpha == 0.5
    assert found.to_json()["barrier"] is None
    assert found.to_json()["above_mean"] is None


@pytest.mark.long
def test_networks_with_other_configurations_have_no_line_between_them(ckpt: Run) -> None:
    llama("a", 0)
    llama("b", 1)
    config = json.loads(Path("b/config.json").read_text())
    assert config["num_attention_heads"] == 4
    config |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    Path("b/config.json").write_text(json.dumps(config))
    said = r"config\.json files differ: .*num_attention_heads is 4 in a, 8 in b"
    with pytest.raises(cs.PlanError, match=said):
        cs.loss_barrier("a", "b", points=3)
    Path("b/config.json").write_text(json.dumps(config | json.loads(Path("a/config.json").read_text())))
    eps = {**json.loads(Path("a/config.json").read_text()), "rms_norm_eps": 0.01}
    Path("b/config.json").write_text(json.dumps(eps))
    for align in (False, True):
        with pytest.raises(cs.PlanError, match="the weights of a and b cannot be interpolated.*rms_norm_eps"):
            cs.loss_barrier("a", "b", points=3, align=align)
    Path("b/config.json").write_text(json.dumps({**eps, "rms_norm_eps": 1e-6, "use_cache": False}))
    cs.loss_barrier("a", "b", points=3)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("first", [-100, 7])
def test_labels_that_are_all_ignored_are_an_error(first: int) -> None:
    llama("a", 0)
    ids = texts()
    labels = torch.full_like(ids, -100)
    labels[:, 0] = first
    save_file({"input_ids": ids, "labels": labels}, "labelled.safetensors")
    with pytest.raises(cs.ConfigError, match="the inputs have no label"):
        cs.loss_barrier("a", "a", inputs="labelled.safetensors", points=3)
    labels[0, 1] = 7
    save_file({"input_ids": ids, "labels": labels}, "labelled.safetensors")
    cs.loss_barrier("a", "a", inputs="labelled.safetensors", points=3)


def test_the_point_with_the_highest_loss_is_said() -> None:
    network = ProvedNetwork("a", "Net", 1, ("float32",))
    points = (BarrierPoint(0, 2, 0), BarrierPoint(0.5, 1.75, 0.25), BarrierPoint(1, 1, 0))
    found = LossBarrier(network, network, "", "", points)
    assert (found.alpha, found.highest_loss.alpha, found.above_mean) == (0.5, 0, 0.5)
    console = Console(width=300)
    with console.capture() as said:
        console.print(barrier_view(found))
    assert "0.25 at alpha 0.5" in said.get()
    assert "the highest loss, at alpha 0, is 0.5 above their mean" in said.get()
    assert "loss as a bar from 0" in said.get()
