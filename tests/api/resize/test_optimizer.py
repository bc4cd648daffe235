"""The state of an optimizer follows its weights: moments change as the gradients of the resized network do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.operations import OperatedCheckpoint
from ckptsurgeon.api.resize.optimizer.source import open_optimizer_source
from ckptsurgeon.planning.resizing.axes import Network
from ckptsurgeon.tensors.info import TensorInfo
from fixtures.resizing.cases import CASES
from fixtures.resizing.networks import NETWORKS

from .test_another_type import Saved
from .test_resize import source, transformers

__all__ = ["source"]

BATCHES = 4
WIDER = CASES["llama"]["wider"].set
ALIKE = [
    ("llama", "wider"), ("llama", "width added"), ("llama", "heads repeated"), ("llama", "channels copied"),
    ("llama", "layers added"), ("gemma3_text", "width added"), ("phi3", "heads repeated"), ("gpt2", "wider"),
    ("gpt_neox", "channels copied"), ("vit", "wider"), ("deepseek_v3", "heads repeated"),
]  # fmt: skip
"""Changes after which copies are alike, so that the gradient of each is known."""


def network(kind: str, folder: Path) -> Any:
    return getattr(transformers, NETWORKS[kind][0]).from_pretrained(folder).eval()  # without dropout


def loss(model: Any, kind: str, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "vit":
        logits = model(pixel_values=torch.randn(3, 3, 32, 32, generator=generator)).logits
        return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0]))
    ids = torch.randint(5, 30, (3, 12), generator=generator)
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def trained(model: Any, kind: str, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, kind, seed + step % BATCHES).backward()
        optimizer.step()


def mean_loss(model: Any) -> float:
    with torch.no_grad():
        return sum(float(loss(model, "llama", 1 + one)) for one in range(BATCHES)) / BATCHES


def adam(model: Any, lr: float = 1e-3) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def resized(folder: Path, state: Mapping[str, Any] | Path, tmp_path: Path, **change: Any) -> tuple[cs.Plan, Any]:
    """Resize a network and the state of its optimizer; return the plan of the state, and the state."""
    if not isinstance(state, Path):
        torch.save(state, tmp_path / "state.pt")
        state = tmp_path / "state.pt"
    cs.apply(cs.resize(folder, **change), tmp_path / "out", force=True)
    plan = cs.resize(folder, optimizer=state, **change)
    cs.apply(plan, tmp_path / "state.pth", force=True)
    assert cs.verify(tmp_path / "state.pth").ok
    return plan, torch.load(tmp_path / "state.pth")


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "name"), ALIKE)
def test_moments_become_those_of_the_gradients_of_the_larger_network(
    kind: str, name: str, source: Saved, tmp_path: Path
) -> None:
    model = network(kind, source(kind))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.0, 0.0))  # moments are the gradient, its square
    trained(model, kind, optimizer, 1)
    case = CASES[kind][name]
    _, state = resized(source(kind), optimizer.state_dict(), tmp_path, set=case.set, **case.more)
    larger = network(kind, tmp_path / "out")
    loss(larger, kind).backward()
    old = dict(model.named_parameters())
    compared = 0
    for number, (key, parameter) in enumerate(larger.named_parameters()):
        found = state["state"].get(number)
        if found is None or parameter.grad is None:
            continue
        assert found["exp_avg"].shape == parameter.shape
        is_new = found["exp_avg"] == 0  # new elements of a parameter begin with 0
        assert not is_new.all() or not parameter.grad.any()
        if "added" not in name:
            torch.testing.assert_close(found["exp_avg"], parameter.grad, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found["exp_avg_sq"], parameter.grad**2, rtol=2e-3, atol=1e-9)
        else:
            torch.testing.assert_close(found["exp_avg"][~is_new], parameter.grad[~is_new], rtol=1e-3, atol=1e-6)
            assert key not in old or (found["exp_avg_sq"] > 0).sum() >= (~is_new).sum()
        compared += 1
    assert compared >= len(old) // 2


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("kind", "name"), [("llama", "k_proj"), ("llama", "v_proj"), ("phi3", "qkv_proj")])
def test_shares_of_copied_key_heads_are_called_estimates(kind: str, name: str, source: Saved, tmp_path: Path) -> None:
    model = network(kind, source(kind))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)  # the momentum is the gradient
    trained(model, kind, optimizer, 1)
    plan, state = resized(source(kind), optimizer.state_dict(), tmp_path, set={"num_key_value_heads": 4})
    note = next(one for one in plan.notes if "are estimates" in one)
    assert f"model.layers.{{a}}.self_attn.{name}.weight" in note
    assert "different queries read the copies" in note
    assert "q_proj" not in note
    larger = network(kind, tmp_path / "out")
    loss(larger, kind).backward()
    keys = [key for key, _ in larger.named_parameters()]
    key = f"model.layers.0.self_attn.{name}.weight"
    momentum = state["state"][keys.index(key)]["momentum_buffer"][-64:]  # of all four value heads
    copies = momentum.reshape(2, 2, 16, 64)
    gradients = larger.get_parameter(key).grad[-64:].reshape(2, 2, 16, 64)
    assert copies[:, 0].equal(copies[:, 1])
    assert not torch.allclose(gradients[:, 0], gradients[:, 1], rtol=0.1)
    torch.testing.assert_close(copies.sum(dim=1), gradients.sum(dim=1), rtol=1e-3, atol=1e-6)


@pytest.mark.long
def test_copies_of_key_heads_with_one_query_each_are_alike(source: Saved, tmp_path: Path) -> None:
    model = network("deepseek_v3", source("deepseek_v3"))
    optimizer = adam(model)
    trained(model, "deepseek_v3", optimizer, 1)
    case = CASES["deepseek_v3"]["heads repeated"]
    plan, _ = resized(source("deepseek_v3"), optimizer.state_dict(), tmp_path, set=case.set, **case.more)
    assert not any("are estimates" in one for one in plan.notes)


@pytest.mark.long
def test_training_goes_on_from_the_state_better_than_from_a_new_one(source: Saved, tmp_path: Path) -> None:
    model = network("llama", source("llama"))
    optimizer = adam(model, 3e-3)
    trained(model, "llama", optimizer, 100)
    losses = {"before": mean_loss(model)}
    model.save_pretrained(tmp_path / "in")
    change = {"set": WIDER}
    _, state = resized(tmp_path / "in", optimizer.state_dict(), tmp_path, **change)
    for name in ("carried", "new"):
        larger = network("llama", tmp_path / "out")
        after = adam(larger, 3e-3)
        if name == "carried":
            after.load_state_dict(state)
        trained(larger, "llama", after, 4)
        losses[name] = mean_loss(larger)
    assert losses["carried"] < losses["before"] < losses["new"] / 5, losses


@pytest.mark.long
def test_the_first_step_is_that_of_the_source_for_each_copy(source: Saved, tmp_path: Path) -> None:
    """Adam divides the first moment by the root of the second, so shares of a gradient cancel out."""
    model = network("llama", source("llama"))
    optimizer = adam(model)
    trained(model, "llama", optimizer, 5)
    model.save_pretrained(tmp_path / "in")
    change = {"set": {"intermediate_size": 192}, "new_channels": "copy"}
    _, state = resized(tmp_path / "in", optimizer.state_dict(), tmp_path, **change)
    larger, updates = network("llama", tmp_path / "out"), []
    after = adam(larger)
    after.load_state_dict(state)
    assert len({one["step"].data_ptr() for one in after.state.values()}) == len(after.state)  # it is changed in place
    for net, used in ((model, optimizer), (larger, after)):
        for group in used.param_groups:
            group["weight_decay"] = 0.0
        weight = net.model.layers[0].mlp.up_proj.weight
        before = weight.detach().clone()
        trained(net, "llama", used, 1, seed=50)
        updates.append(weight.detach() - before)
    torch.testing.assert_close(updates[1], updates[0].repeat(2, 1), rtol=1e-2, atol=1e-6)
    assert {float(one["step"]) for one in after.state.values()} == {6.0}


def trained_state(source: Saved, make: Any = adam) -> tuple[Any, dict[str, Any]]:
    model = network("llama", source("llama"))
    optimizer = make(model)
    trained(model, "llama", optimizer, 2)
    return model, optimizer.state_dict()


@pytest.mark.long
def test_the_groups_of_transformers_trainer_are_found_by_shapes(source: Saved, tmp_path: Path) -> None:
    def grouped(model: Any) -> torch.optim.AdamW:
        pairs = list(model.named_parameters())
        decays = [one for name, one in pairs if "norm" not in name]
        others = [one for name, one in pairs if "norm" in name]
        return torch.optim.AdamW([{"params": decays}, {"params": others, "weight_decay": 0.0}], lr=1e-3)

    model, state = trained_state(source, grouped)
    model.save_pretrained(tmp_path / "in")
    torch.save(state, tmp_path / "in/optimizer.pt")
    change = {"set": {"num_hidden_layers": 3}, "layers": "0,1,1"}
    plan, found = resized(tmp_path / "in", tmp_path / "in", tmp_path, **change)
    assert "the moments of 30 of 30 parameters are those in optimizer.pt" in plan.notes[1]
    larger = network("llama", tmp_path / "out")
    after = grouped(larger)
    after.load_state_dict(found)
    assert [len(one["params"]) for one in after.param_groups] == [23, 7]
    assert after.param_groups[1]["weight_decay"] == 0.0
    names = {one: name for name, one in larger.named_parameters()}
    moments = {names[one]: value["exp_avg"] for one, value in after.state.items()}
    key = "model.layers.{}.post_attention_layernorm.weight"
    assert moments[key.format(2)].equal(moments[key.format(1)])
    assert not moments[key.format(0)].equal(moments[key.format(1)])


@pytest.mark.long
def test_groups_in_an_order_of_their_own_are_an_error(source: Saved, tmp_path: Path) -> None:
    """The output layer is as large as the embeddings, so shapes do not show which of the two comes first."""

    def head_first(model: Any) -> torch.optim.SGD:
        head, embeddings = model.lm_head.weight, model.model.embed_tokens.weight
        body = [one for one in model.parameters() if one is not head and one is not embeddings]
        return torch.optim.SGD([{"params": one} for one in ([head], body, [embeddings])], lr=0.1, momentum=0.9)

    def matrices_apart(model: Any) -> torch.optim.SGD:
        head, *matrices = [one for one in list(model.parameters())[::-1] if one.ndim > 1]
        others = [one for one in model.parameters() if one.ndim == 1]
        return torch.optim.SGD([{"params": one} for one in ([head], matrices[::-1], others)], lr=0.1, momentum=0.9)

    for make in (head_first, matrices_apart):
        _, state = trained_state(source, make)
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(cs.ConfigError, match="has 21 parameters and the network has"):
            cs.resize(source("llama"), optimizer=tmp_path / "state.pt", set={"intermediate_size": 48})


def test_two_orders_that_both_fit_are_an_error(tmp_path: Path) -> None:
    """The parameters that the two orders exchange, ``scale`` and ``b.bias``, have no state, so shapes do not decide."""
    shapes = {"a.weight": (2, 2), "scale": (2,), "b.bias": (2, 2), "c.bias": (2,)}
    network = Network({key: TensorInfo("float32", shape) for key, shape in shapes.items()}, {}, {})
    groups = [{"params": [0, 1]}, {"params": [2, 3]}]
    state = {0: {"exp_avg": torch.ones(2, 2)}, 3: {"exp_avg": torch.ones(2)}}
    torch.save({"state": state, "param_groups": groups}, tmp_path / "state.pt")
    with pytest.raises(cs.ConfigError, match="has 4 parameters and the network has"):
        open_optimizer_source(str(tmp_path / "state.pt"), network, list(shapes))


@pytest.mark.long
def test_names_in_the_state_say_which_parameter_is_which(source: Saved, tmp_path: Path) -> None:
    def backwards(model: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW(list(model.named_parameters())[::-1], lr=1e-3)

    _, state = trained_state(source, backwards)
    plan, found = resized(source("llama"), state, tmp_path, set={"intermediate_size": 144})
    names = found["param_groups"][0]["param_names"]
    larger = dict(network("llama", tmp_path / "out").named_parameters())
    assert set(names) == set(larger)
    assert all(found["state"][number]["exp_avg"].shape == larger[name].shape for number, name in enumerate(names))
    assert "second moments of others" in plan.notes[-1]
    of = found["state"][names.index("model.layers.0.mlp.up_proj.weight")]
    assert not of["exp_avg"][96:].any()
    assert of["exp_avg_sq"][96:].equal(of["exp_avg_sq"][:48])


@pytest.mark.long
def test_parameters_that_were_frozen_stay_without_a_group(source: Saved, tmp_path: Path) -> None:
    def of_blocks(model: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW([pair for pair in model.named_parameters() if "layers" in pair[0]], lr=1e-3)

    _, state = trained_state(source, of_blocks)
    _, found = resized(source("llama"), state, tmp_path, set={"num_hidden_layers": 4}, layers="repeat")
    (names,) = (group["param_names"] for group in found["param_groups"])
    larger = [name for name, _ in network("llama", tmp_path / "out").named_parameters()]
    assert names == [name for name in larger if "layers" in name]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod."])
def test_names_with_a_prefix_that_training_added_are_known(source: Saved, tmp_path: Path, prefix: str) -> None:
    def wrapped(model: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW([(prefix + name, one) for name, one in model.named_parameters()][::-1], lr=1e-3)

    _, state = trained_state(source, wrapped)
    _, found = resized(source("llama"), state, tmp_path, set={"intermediate_size": 144})
    larger = dict(network("llama", tmp_path / "out").named_parameters())
    names = [name.removeprefix(prefix) for name in found["param_groups"][0]["param_names"]]
    assert all(found["state"][number]["exp_avg"].shape == larger[name].shape for number, name in enumerate(names))


@pytest.mark.long
def test_names_of_another_network_are_refused(source: Saved, tmp_path: Path) -> None:
    def renamed(model: Any) -> torch.optim.AdamW:
        return torch.optim.AdamW([(f"net.{name}", one) for name, one in model.named_parameters()][::-1], lr=1e-3)

    _, state = trained_state(source, renamed)
    with pytest.raises(cs.ConfigError, match="neither names nor groups nor shapes show which parameter is which"):
        resized(source("llama"), state, tmp_path, set={"intermediate_size": 144})


def test_moments_that_share_memory_in_the_source_do_not_share_it_in_the_output(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source, adam)
    step = torch.tensor(4.0)
    for one in state["state"].values():
        one["step"] = step
    _, found = resized(source("llama"), state, tmp_path, set={"intermediate_size": 144})
    assert len({one["step"].data_ptr() for one in found["state"].values()}) == len(found["state"])


@pytest.mark.long
def test_an_optimizer_without_moments_is_said(source: Saved, tmp_path: Path) -> None:
    def plain(model: Any) -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    _, state = trained_state(source, plain)
    number = len(state["param_groups"][0]["params"])
    older = {**state, "state": {parameter: {"momentum_buffer": None} for parameter in range(number)}}
    for one in (state, older):
        with pytest.raises(cs.ConfigError, match="has no moments: SGD without momentum stores none") as caught:
            resized(source("llama"), one, tmp_path, set={"intermediate_size": 144})
        assert caught.value.hint == "Make a new optimizer for the new network."


def test_a_proof_needs_weights(source: Saved, tmp_path: Path, ckpt: Any) -> None:
    _, state = trained_state(source, adam)
    torch.save(state, tmp_path / "state.pt")
    done = ckpt(
        "resize", source("llama"), "--set", "intermediate_size=144", "--optimizer", tmp_path / "state.pt", "--prove", "-o",
        tmp_path / "out.pth",
    )  # fmt: skip
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "the output of --optimizer is the state of an optimizer, without weights" in said
    assert "run the same ckpt resize with --prove and without --optimizer" in said
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.long
def test_a_distributed_checkpoint_has_names_too(source: Saved, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = network("llama", source("llama"))
    optimizer = adam(model)
    trained(model, "llama", optimizer, 1)
    states = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(states, checkpoint_id=tmp_path / "dcp", no_dist=True)
    _, found = resized(source("llama"), tmp_path / "dcp", tmp_path, set={"num_attention_heads": 8})
    larger = network("llama", tmp_path / "out")
    after = adam(larger)
    set_optimizer_state_dict(larger, after, found)
    assert len(after.state) == len(list(larger.parameters()))


@pytest.mark.long
def test_a_checkpoint_of_a_training_has_both(source: Saved, tmp_path: Path) -> None:
    model, state = trained_state(source, lambda one: torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9))
    torch.save({"model": model.state_dict(), "optimizer": state, "epoch": 3}, tmp_path / "training.pth")
    config = source("llama") / "config.json"
    path = tmp_path / "training.pth"
    plan = cs.resize(path, config=config, optimizer=path, set={"num_attention_heads": 8})
    cs.apply(plan, tmp_path / "state.pth")
    found = torch.load(tmp_path / "state.pth")
    key, new = (one["state"][1]["momentum_buffer"] for one in (state, found))  # q_proj, each head twice
    assert new.equal(key.reshape(4, 1, 16, 64).expand(4, 2, 16, 64).reshape(128, 64) / 2)
    stored = json.loads(json.dumps(plan.to_json()))
    assert cs.Plan.from_json(stored) == cs.Plan.from_json(plan.to_json())
    cs.apply(cs.Plan.from_json(stored), tmp_path / "again.pth")
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "state.pth").read_bytes()


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("change", "kept", "said"),
    [
        ({"set": {"num_key_value_heads": 1}}, 17, "self_attn.v_proj.weight are means of several"),
        (
            {"set": {"num_hidden_layers": 3}, "layers": "identity"},
            21,
            "are in layers that only pass their input on",
        ),
    ],
)
def test_what_no_moment_is_known_for_begins_anew_and_is_named(
    change: dict[str, Any], kept: int, said: str, source: Saved, tmp_path: Path
) -> None:
    _, state = trained_state(source)
    plan, found = resized(source("llama"), state, tmp_path, **change)
    assert said in plan.notes[-1]
    if "layers" in change:
        assert "num_hidden_layers 2 to 3: 1 layer is added, which only passes its input on" in plan.notes[0]
    assert len(found["state"]) == kept
    larger = network("llama", tmp_path / "out")
    after = adam(larger)
    after.load_state_dict(found)
    trained(larger, "llama", after, 1)


@pytest.mark.long
def test_tensors_that_were_tied_begin_anew(source: Saved, tmp_path: Path) -> None:
    model = network("gpt2", source("gpt2"))
    optimizer = adam(model)
    trained(model, "gpt2", optimizer, 1)
    case = CASES["gpt2"]["wider"]
    plan, found = resized(source("gpt2"), optimizer.state_dict(), tmp_path, set=case.set, **case.more)
    assert "are no longer tied, and the gradient of each alone is not known" in plan.notes[-1]
    after = adam(network("gpt2", tmp_path / "out"))
    after.load_state_dict(found)
    number = len(found["param_groups"][0]["params"])
    assert len(found["state"]) == number - 2


@pytest.mark.long
def test_steps_may_be_plain_numbers_as_older_versions_of_torch_store_them(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source)
    for one in state["state"].values():
        one["step"] = 7
    _, found = resized(source("llama"), state, tmp_path, set={"intermediate_size": 48})
    assert {float(one["step"]) for one in found["state"].values()} == {7.0}
    assert found["state"][0]["step"].shape == ()


@pytest.mark.long
def test_parameters_without_a_state_are_named(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source)
    del state["state"][1]
    del state["state"][2]["exp_avg_sq"]
    for number in (7, 16):  # both layers
        del state["state"][number]
    plan, found = resized(source("llama"), state, tmp_path, set={"intermediate_size": 48})
    assert plan.notes[-1] == (
        "parameters that begin with a new state: model.layers.0.self_attn.q_proj.weight and "
        "model.layers.{a}.mlp.down_proj.weight are without a state in state.pt; "
        "model.layers.0.self_attn.k_proj.weight is without exp_avg_sq in state.pt"
    )
    assert "of 17 of 21 parameters" in plan.notes[1]
    assert not {1, 2, 7, 16} & found["state"].keys()


@pytest.mark.long
def test_groups_may_store_different_moments(source: Saved, tmp_path: Path) -> None:
    def one_with_momentum(model: Any) -> torch.optim.RMSprop:
        matrices = [one for one in model.parameters() if one.ndim > 1]
        others = [one for one in model.parameters() if one.ndim == 1]
        return torch.optim.RMSprop([{"params": matrices, "momentum": 0.9}, {"params": others}])

    _, state = trained_state(source, one_with_momentum)
    plan, found = resized(source("llama"), state, tmp_path, set={"num_attention_heads": 8})
    assert "of 21 of 21 parameters" in plan.notes[1]
    assert sum("momentum_buffer" in one for one in found["state"].values()) == 16


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "values"),
    [
        (torch.optim.AdamW, "a first moment of 0 and second moments of others"),
        (torch.optim.RMSprop, "second moments of others"),
        (lambda parameters: torch.optim.SGD(parameters, momentum=0.9), "a first moment of 0"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "change", "names"),
    [
        (
            "llama",
            {"set": {"intermediate_size": 144}},
            "model.layers.{a}.mlp.down_proj.weight, model.layers.{a}.mlp.gate_proj.weight and "
            "model.layers.{a}.mlp.up_proj.weight",
        ),
        ("llama", {"set": {"intermediate_size": 48}}, ""),
        ("gpt2", {"set": {"n_embd": 96, "n_head": 6}}, "transformer.h.{a}.attn.c_attn.weight"),
    ],
)
def test_parameters_with_new_elements_are_named(
    kind: str, change: dict[str, Any], names: str, make: Any, values: str, source: Saved, tmp_path: Path
) -> None:
    model = network(kind, source(kind))
    optimizer = make(model.parameters())
    trained(model, kind, optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    plan = cs.resize(source(kind), optimizer=tmp_path / "state.pt", **change)
    said = [one for one in plan.notes if one.startswith("new elements of")]
    assert len(said) == bool(names)
    if names:
        assert names in said[0]
        assert said[0].endswith(f" begin with {values}")


@pytest.mark.long
def test_the_values_of_all_parameters_are_planned_together(
    source: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call looks at all keys, so a call for each value takes four times as long for twice as many layers."""
    calls, further = [], OperatedCheckpoint.further
    monkeypatch.setattr(OperatedCheckpoint, "further", lambda *given: calls.append(given) or further(*given))
    _, state = trained_state(source)
    torch.save(state, tmp_path / "state.pt")
    cs.resize(source("llama"), optimizer=tmp_path / "state.pt", set={"intermediate_size": 144})
    assert 0 < len(calls) < 21  # the network has 21 parameters


@pytest.mark.long
def test_a_state_that_cannot_follow_is_an_error(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source, lambda one: torch.optim.Adafactor(one.parameters()))
    with pytest.raises(cs.PlanError, match="stored as row_var, col_var, which cannot follow a change of shape"):
        resized(source("llama"), state, tmp_path, set={"intermediate_size": 48})


def _fewer(state: dict[str, Any]) -> None:
    state["param_groups"][0]["params"].pop()


def _other_shape(state: dict[str, Any]) -> None:
    state["state"][0]["exp_avg"] = torch.zeros(3, 3)


def _misnamed(state: dict[str, Any]) -> None:
    state["param_groups"][0]["params"] = [f"{one}.x" for one in state["param_groups"][0]["params"]]


def _twice(state: dict[str, Any]) -> None:
    state["param_groups"][0]["params"][1] = 0


def _tensor_lr(state: dict[str, Any]) -> None:
    state["param_groups"][0]["lr"] = torch.tensor(0.1)


def _lists_as_names(state: dict[str, Any]) -> None:
    state["param_groups"][0].update(param_names=[[1]] * 21, params=[f"{one}.x" for one in range(21)])


def _one_name(state: dict[str, Any]) -> None:
    state["param_groups"][0].update(param_names=["model.norm.weight"] * 21, params=[f"{one}.x" for one in range(21)])


def _no_groups(state: dict[str, Any]) -> None:
    state["param_groups"] = {"params": [0]}


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (_fewer, "has 20 parameters and the network has"),
        (_other_shape, "has 21 parameters and the network has"),
        (_misnamed, "has 21 parameters and the network has"),
        (
            lambda state: state["state"][0].update(step=10**400),
            r"the number state\.0\.step is NaN, or too large for float32",
        ),
        (lambda state: state["state"][0].update(step=float("nan")), r"state\.0\.step is NaN"),
        (_lists_as_names, "has 21 parameters and the network has"),
        (_one_name, "has 21 parameters and the network has"),
        (_twice, "lists a parameter twice"),
        (_tensor_lr, "cannot be written into another file: it contains tensors"),
        (_no_groups, "param_groups is not a list of dicts with params"),
    ],
)
def test_a_state_of_another_network_or_form_is_an_error(harm: Any, why: str, source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source)
    harm(state)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(cs.CheckpointError, match=why):
        cs.resize(source("llama"), optimizer=tmp_path / "state.pt", set={"intermediate_size": 48})


def test_names_with_other_shapes_are_an_error(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source, lambda one: torch.optim.AdamW(one.named_parameters()))
    _other_shape(state)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(cs.PlanError, match=r"exp_avg of model\.embed_tokens\.weight is \(3, 3\)"):
        cs.resize(source("llama"), optimizer=tmp_path / "state.pt", set={"intermediate_size": 48})


def test_one_state_of_an_optimizer_has_to_be_in_the_file(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source)
    torch.save({"optimizerG": state, "optimizerD": state}, tmp_path / "state.pt")
    with pytest.raises(cs.ConfigError, match="several optimizers: optimizerG, optimizerD"):
        cs.resize(source("llama"), optimizer=tmp_path / "state.pt", set={"intermediate_size": 48})
    with pytest.raises(cs.ConfigError, match="no state of an optimizer"):
        cs.resize(source("llama"), optimizer=source("llama"), set={"intermediate_size": 48})


@pytest.mark.long
def test_only_a_file_of_torch_can_hold_the_state(source: Saved, tmp_path: Path) -> None:
    _, state = trained_state(source)
    torch.save(state, tmp_path / "state.pt")
    plan = cs.resize(source("llama"), optimizer=tmp_path / "state.pt", set={"intermediate_size": 48})
    for output in ("state.safetensors", "folder"):
        with pytest.raises(cs.ConfigError, match="cannot store entries other than tensors"):
            cs.apply(plan, tmp_path / output)
