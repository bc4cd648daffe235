"""Average: what float64 gives, in the output's dtype; integers are never summed; what does not belong together is said."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.engine.check_steps import check_step
from ckptsurgeon.engine.compute import compute as needs
from ckptsurgeon.engine.compute import one_block
from ckptsurgeon.planning.average import DECAYS, decay_weights, ema_weights, running_weights
from ckptsurgeon.planning.plan.step import Input, Step
from fixtures.espnet_models import recorded

from ..helpers.adapters import peft_folder


def write(number: int = 3, **change: Any) -> list[dict[str, torch.Tensor]]:
    states = []
    for i in range(number):
        torch.manual_seed(i)
        state = {
            "w": torch.randn(30, 7), "half": torch.randn(9).half() * 100, "bf": torch.randn(5).bfloat16(),
            "double": torch.randn(4, dtype=torch.float64), "z": torch.randn(3, dtype=torch.complex64),
            "steps": torch.tensor(10 * (i + 1)), "mask": torch.tensor([True, i == 0]), "empty": torch.zeros(0, 4),
        }  # fmt: skip
        states.append(state)
        torch.save({**state, **change}, f"{i}.pth")
    return states


PATHS = ["0.pth", "1.pth", "2.pth"]


def test_the_mean_is_float64_s_in_the_output_s_dtype() -> None:
    states = write()
    plan = cs.average(PATHS)
    assert plan.counts == {"copied": 2, "merged": 6}
    cs.apply(plan, "out.pth")
    assert cs.verify("out.pth").compared == 8
    found = torch.load("out.pth", weights_only=True)
    for key in ("w", "half", "bf", "double"):
        exact = torch.stack([state[key].double() for state in states]).mean(0).to(states[0][key].dtype)
        assert torch.equal(found[key], exact), key
    assert torch.allclose(found["z"], torch.stack([state["z"] for state in states]).mean(0))


@pytest.mark.parametrize(("policy", "steps", "mask"), [("last", 30, False), ("first", 10, True), ("max", 30, True)])
def test_integers_are_kept_and_never_summed(policy: str, steps: int, mask: bool) -> None:
    write()
    cs.apply(cs.average(PATHS, int_buffers=policy), "out.pth")
    found = torch.load("out.pth", weights_only=True)
    assert found["steps"].item() == steps
    assert found["mask"].tolist() == [True, mask]
    assert found["mask"].dtype == torch.bool
    assert cs.verify("out.pth").ok


@pytest.mark.parametrize("key", ["l.weight", "l.kernel"])
def test_integers_under_the_name_of_a_weight_are_noted(key: str) -> None:
    state = {"l.s": torch.ones(4), "ids.weight_ids": torch.arange(4), "bn.num_batches_tracked": torch.tensor(3)}
    torch.save({**state, "position_ids": torch.arange(8)[None], "attn.bias": torch.ones(1, 4, 4).bool()}, "0.pth")
    assert not cs.average(["0.pth", "0.pth"]).notes[1:]  # only that the model is given twice
    for name in PATHS:
        torch.save({**state, key: torch.arange(12).reshape(3, 4)}, name)
    (note,) = (one for one in cs.average(PATHS).notes if "integer values" in one)
    assert note == (
        "1 weight has integer values, which have no mean: the values of the last checkpoint are taken (--int-buffers); if "
        f"these are codes of quantised weights, the output is wrong: {key}"
    )
    torch.save({**state, "l.weight": torch.ones(3, 4, dtype=torch.int32)}, "0.pth")
    with pytest.raises(cs.PlanError, match="l.weight of 0.pth is quantised"):
        cs.average(["0.pth", "0.pth"])


def test_a_moving_average_is_torch_s() -> None:
    states = write()
    cs.apply(cs.average(PATHS, ema=0.9), "out.pth")
    expected = states[0]["double"]
    for state in states[1:]:
        expected = 0.9 * expected + 0.1 * state["double"]
    assert torch.allclose(torch.load("out.pth", weights_only=True)["double"], expected, rtol=1e-12, atol=0)
    assert cs.verify("out.pth").ok


def test_batch_norm_s_counter_and_ties_survive() -> None:
    for i in range(2):
        torch.manual_seed(i)
        net = nn.ModuleDict(
            {"embed": nn.Embedding(5, 4), "norm": nn.BatchNorm1d(4), "out": nn.Linear(4, 5, bias=False)}
        )
        net["out"].weight = net["embed"].weight
        net["norm"].num_batches_tracked += 7 + i
        torch.save({"model": net.state_dict(), "optimizer": {}}, f"{i}.pth")
    cs.apply(cs.average(["0.pth", "1.pth"]), "out.pth")
    with cs.open_checkpoint("out.pth") as found:
        assert found.ties == {"out.weight": "embed.weight"}
        assert found.tensor("norm.num_batches_tracked").item() == 8


def test_blocks_and_files_of_every_kind_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_block, "BLOCK_BYTES", 256)
    states = [torch.randn(300, 5) for _ in range(3)]
    torch.save({"w": states[0].t().contiguous().t()}, "0.pth")
    save_file({"w": states[1]}, "1.safetensors")
    torch.save({"w": states[2]}, "2.pt", _use_new_zipfile_serialization=False)
    cs.apply(cs.average(["0.pth", "1.safetensors", "2.pt"]), "out.safetensors")
    exact = torch.stack([state.double() for state in states]).mean(0).float()
    assert torch.equal(load_file("out.safetensors")["w"], exact)
    assert cs.verify("out.safetensors").compared == 1


def test_a_plan_on_disk_gives_the_same_bytes_and_the_command_too(ckpt: Any) -> None:
    write()
    Path("plan.json").write_text(ckpt("average", *PATHS, "--ema", "0.99", "-n", "--json").out)
    assert ckpt("average", *PATHS, "--ema", "0.99", "-o", "a.pth").code == 0
    assert ckpt("apply", "plan.json", "-o", "b.pth").code == 0
    cs.apply(cs.average(PATHS, ema=0.99), "c.pth")
    a, b, c = (Path(f"{name}.pth").read_bytes() for name in "abc")
    assert a == b == c


def test_verify_finds_a_changed_average_and_says_what_is_gone() -> None:
    write()
    plan = cs.average(PATHS)
    cs.apply(plan, "out.pth")
    state = torch.load("out.pth", weights_only=True)
    state["w"][3, 2] += 1
    torch.save(state, "other.pth")
    assert [failure.key for failure in cs.verify("other.pth", plan=plan).failed] == ["w"]
    os.remove("1.pth")
    found = cs.verify("out.pth")
    assert found.ok
    assert "w" in (found.not_compared or {})
    assert "steps" not in (found.not_compared or {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"w": torch.zeros(30, 8)}, r"w is \(30, 7\) in 0.pth, \(30, 8\) in x.pth"),
        ({"w": torch.zeros(30, 7, dtype=torch.int64)}, "w is float32 in 0.pth, int64 in x.pth"),
        ({"more": torch.zeros(1)}, "0.pth lacks tensors that other checkpoints have: more"),
        ({"w": torch.zeros(30, 7).to_sparse()}, "w of x.pth cannot be averaged: it is sparse"),
    ],
)
def test_what_does_not_belong_together_is_an_error_that_names_the_file(change: dict[str, Any], why: str) -> None:
    states = write(2)
    torch.save({**states[1], **change}, "x.pth")
    with pytest.raises(cs.CheckpointError, match=why) as caught:
        cs.average(["0.pth", "1.pth", "x.pth"])
    assert caught.value.exit_code in (3, 4)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["0.pth", "-o", "o.pth"], "only one checkpoint is given"),
        (["0.pth", "1.pth", "--ema", "1", "-o", "o.pth"], "is not a valid decay"),
        (["0.pth", "1.pth", "--int-buffers", "sum", "-o", "o.pth"], "--int-buffers sum is unknown"),
        (["0.pth", "1.pth"], "no output given"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], why: str, ckpt: Any) -> None:
    write(2)
    done = ckpt("average", *arguments)
    assert done.code == 2
    assert why in done.err


def test_an_edited_plan_cannot_average_what_has_no_mean() -> None:
    write()
    data = json.loads(json.dumps(cs.average(PATHS).to_json()))
    step = next(step for step in data["steps"] if step["key"] == "steps")
    step.update({"op": "average", "class": "merged"})
    data["counts"] = {"copied": 1, "merged": 7}
    Path("plan.json").write_text(json.dumps(data))
    with pytest.raises(cs.PlanError, match="the operation average cannot make the tensor steps"):
        cs.apply("plan.json", "out.pth")


def test_what_an_average_makes_infinite_of_finite_values_is_said() -> None:
    for name, values in (("a.pth", [1.7e308, 1.0, float("nan")]), ("b.pth", [1.7e308, 2.0, 1.0])):
        torch.save({"w": torch.tensor(values, dtype=torch.float64)}, name)
    receipt = cs.apply(cs.average(["a.pth", "b.pth"]), "out.pth")
    assert receipt.notes == (
        "a.pth: 1 small tensor has NaN or infinite values: w",
        "1 value of w became infinite or NaN",
        "NaN and infinite values come from the inputs: w (1 value)",
    )


def test_what_is_no_tensor_is_left_out_and_said_once() -> None:
    for name in ("a.pth", "b.pth"):
        torch.save({"model": {"w": torch.ones(2)}, "epoch": 3, "optimizer": {"lr": 0.1}}, name)
    for plan in (cs.average(["a.pth", "b.pth"]), cs.merge(["a.pth", "b.pth"], method="linear", weights=[1, 1])):
        assert [note for note in plan.notes if "left out" in note] == [
            "left out: epoch, optimizer; only tensors of the state dict are written"
        ]


def test_a_folder_of_a_run_is_not_its_checkpoints() -> None:
    Path("run").mkdir()
    for number in (1, 2):
        torch.save({"a": torch.ones(2)}, f"run/{number}epoch.pth")
    with pytest.raises(cs.FormatError, match="has several checkpoints.*To average several, give the path of each"):
        cs.average(["run"])


def test_no_checkpoints_are_not_one() -> None:
    with pytest.raises(cs.ConfigError, match="there are no checkpoints to average"):
        cs.average([])


def test_a_record_with_a_bad_checksum_is_never_averaged() -> None:
    write()
    data = bytearray(Path("1.pth").read_bytes())
    torch.manual_seed(1)
    at = data.find(torch.randn(30, 7).numpy().tobytes())
    assert at > 0
    data[at + 100] ^= 1
    Path("1.pth").write_bytes(bytes(data))
    with pytest.raises(cs.FormatError, match=r"1.pth: .* does not match its checksum"):
        cs.apply(cs.average(PATHS), "out.pth")
    assert not Path("out.pth").exists()


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "THREADS", 1)  # two are at their peaks together or not
    for i in range(60):
        torch.save({"w": torch.full((800_000,), float(i))}, f"{i}.pth")
    peaks = []
    for number in (2, 60):
        plan = cs.average([f"{i}.pth" for i in range(number)])
        tracemalloc.start()
        cs.apply(plan, f"of{number}.pth")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert torch.load("of60.pth", weights_only=True)["w"].unique().tolist() == [29.5]


def test_a_checksum_is_that_of_all_blocks_whichever_thread_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_block, "BLOCK_BYTES", 64)
    write(2)
    cs.apply(cs.average(["0.pth", "1.pth"]), "out.pth")
    data = bytearray(Path("1.pth").read_bytes())
    torch.manual_seed(1)
    data[data.find(torch.randn(30, 7).numpy().tobytes()) + 800] ^= 1
    Path("1.pth").write_bytes(bytes(data))
    with pytest.raises(cs.FormatError, match=r"1.pth: .* does not match its checksum"):
        cs.apply(cs.average(["0.pth", "1.pth"]), "other.pth")


def test_a_weighted_sum_of_halves_is_not_rounded_on_the_way() -> None:
    states = write()
    cs.apply(cs.average(PATHS, ema=0.9), "out.pth")
    found = torch.load("out.pth", weights_only=True)
    for key in ("half", "w"):
        terms = [w * state[key].double() for w, state in zip(ema_weights(0.9, 3), states, strict=True)]
        assert torch.equal(found[key], torch.stack(terms).sum(0).to(states[0][key].dtype)), key


def test_the_largest_counter_of_another_width_fits_or_is_refused() -> None:
    torch.save({"n": torch.tensor([3, 4], dtype=torch.int32), "w": torch.ones(2)}, "0.pth")
    torch.save({"n": torch.tensor([5, 2]), "w": torch.ones(2)}, "1.pth")
    cs.apply(cs.average(["0.pth", "1.pth"], int_buffers="max"), "out.pth")
    found = torch.load("out.pth", weights_only=True)["n"]
    assert (found.tolist(), found.dtype) == ([5, 4], torch.int32)
    torch.save({"n": torch.tensor([2**40, 2]), "w": torch.ones(2)}, "1.pth")
    with pytest.raises(cs.PlanError, match="n: the value 1099511627776 does not fit int32") as raised:
        cs.apply(cs.average(["0.pth", "1.pth"], int_buffers="max"), "other.pth")
    assert raised.value.hint == "Use --int-buffers last, or first: these keep the dtype of that checkpoint."
    cs.apply(cs.average(["0.pth", "1.pth"], int_buffers="last"), "last.pth")
    assert torch.load("last.pth", weights_only=True)["n"].tolist() == [2**40, 2]


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_packed_floats_have_no_average(dtype: str) -> None:
    bits = {"F4": 4, "F6_E2M3": 6}[dtype]
    head = json.dumps({"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}).encode()
    for i in range(2):
        Path(f"{i}.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(range(i, bits + i)))
    with pytest.raises(cs.PlanError, match=r"w of 0.safetensors is float\d_\w+, which packs several numbers"):
        cs.average(["0.safetensors", "1.safetensors"])


def test_an_edited_plan_cannot_average_packed_floats() -> None:
    one = Input(0, "w", "float4_e2m1fn_x2", (4,))
    step = Step("w", "average", one.dtype, (4,), 0, "w", one.dtype, (4,), more=(one._replace(source=1),))
    with pytest.raises(cs.PlanError, match="the operation average cannot make the tensor w"):
        check_step(step)
    floats = replace(step, dtype="float16", source_dtype="float16", more=(Input(1, "w", "complex64", (4,)),))
    with pytest.raises(cs.PlanError):
        check_step(floats)
    with pytest.raises(cs.PlanError, match="the operation average cannot make the tensor w"):
        check_step(replace(floats, dtype="complex64"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.complex64])
def test_scalars_of_every_type_are_averaged(dtype: torch.dtype) -> None:
    """numpy makes scalars of arrays without dimensions, which nothing can be added into."""
    for n in (1, 2, 3):
        torch.save({"s": torch.tensor(float(n)).to(dtype)}, f"s{n}.pth")
    for ema in (None, 0.5):
        cs.apply(cs.average(["s1.pth", "s2.pth", "s3.pth"], ema=ema), "out.pth", force=True)
        found = torch.load("out.pth", weights_only=True)["s"]
        assert (found.dtype, found.shape) == (dtype, ())
        assert complex(found.to(torch.complex64)) == (2.0 if ema is None else 2.25)


# Against ESPnet's average_nbest_models, as recorded in fixtures/golden/espnet/average.json.


def test_floats_are_espnet_s_mean_and_integers_keep_their_value_where_espnet_sums_them() -> None:
    theirs = recorded("average")
    epochs = [f"{n}epoch.pth" for n in range(1, 5)]
    for n, name in enumerate(epochs, 1):
        torch.save({"w": torch.tensor([float(n)]), "n": torch.tensor(10 * n), "b": torch.tensor(n % 2 == 0)}, name)
    cs.apply(cs.average(epochs), "out.pth")
    ours = {key: [str(v.dtype).removeprefix("torch."), v.tolist()] for key, v in torch.load("out.pth").items()}
    alone = theirs["4"]["values"]
    assert alone == {"w": ours["w"], "n": ["int64", 100], "b": ["float32", 0.25]}
    assert ours == {"w": ["float32", [2.5]], "n": ["int64", 40], "b": ["bool", True]}
    # Asked for the best two as well, ESPnet's mean of four begins with what the mean of two left behind.
    assert theirs["2,4"]["values"]["w"] != alone["w"]


SEVERAL = [
    (["f16", "bf16", "f32"], "float16", "float32"),
    (["bf16", "f16"], "bfloat16", "float32"),
    (["f32", "bf16"], "float32", "float32"),
]
DTYPE_OF = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


@pytest.mark.parametrize(("names", "first", "widest"), SEVERAL)
def test_which_dtype_comes_of_several_is_said(names: list[str], first: str, widest: str) -> None:
    paths = [f"{name}.pth" for name in names]
    for name, path in zip(names, paths, strict=True):
        torch.save({"w": torch.ones(2, dtype=DTYPE_OF[name]), "b": torch.ones(1)}, path)
    said = f"1 tensor with different dtypes in the checkpoints ({', '.join(str(DTYPE_OF[n]).removeprefix('torch.') for n in names[:-1])}"
    (note,) = cs.average(paths).notes
    assert note.startswith(said)
    assert note.endswith(f"the output has the dtype of the first checkpoint, {first}: w")
    (note,) = cs.merge(paths, method="linear", weights=[1.0] * len(paths)).notes
    assert note == f"1 tensor with different dtypes in the models: the output has {widest}, which holds all values: w"
    assert cs.average([paths[0], paths[0]]).notes == (f"{paths[0]} is given twice, so its weights count twice",)


def test_wrapped_keys_are_met_with_the_option_that_unwraps_them() -> None:
    state = {"w": torch.ones(2, 2), "b": torch.ones(2)}
    torch.save(state, "a.pth")
    torch.save({f"module.{key}": value for key, value in state.items()}, "b.pth")
    with pytest.raises(cs.PlanError) as error:
        cs.average(["a.pth", "b.pth"])
    assert error.value.hint == "Use --unwrap: the keys differ only in the wrappers that training added."
    assert len(cs.average(["a.pth", "b.pth"], unwrap=True).steps) == 2
    torch.save({"module.w": state["w"]}, "b.pth")
    with pytest.raises(cs.PlanError) as error:
        cs.average(["a.pth", "b.pth"])
    assert "ckpt filter" in error.value.hint


@pytest.mark.parametrize(
    ("roots", "said"),
    [
        (("model", "ema"), "model of 0.pth, ema of 1.pth"),
        (("", "model_ema"), "the top of 0.pth, model_ema of 1.pth"),
        (("ema", "model_ema"), ""),
        (("model", "state_dict"), ""),
        (("", "schema"), ""),
    ],
)
def test_moving_averages_among_other_weights_are_said(roots: tuple[str, str], said: str) -> None:
    for number, root in enumerate(roots):
        state = {"w": torch.full((2, 2), float(number)), "b": torch.ones(2)}
        torch.save({root: state} if root else state, f"{number}.pth")
    notes = [note for note in cs.average(["0.pth", "1.pth"]).notes if "mixed" in note]
    head, tail = (
        "moving averages are mixed with other weights: ",
        "; --root PATH reads the state dict at the same dotted path in each input",
    )
    assert notes == ([f"{head}{said}{tail}"] if said else [])


def test_a_checkpoint_that_is_given_twice_is_said() -> None:
    save_file({"w": torch.ones(4)}, "a.safetensors")
    save_file({"w": torch.zeros(4)}, "b.safetensors")
    shutil.copy("a.safetensors", "c.safetensors")
    os.link("b.safetensors", "d.safetensors")
    assert not cs.average(["a.safetensors", "b.safetensors"]).notes
    assert cs.average(["a.safetensors"] * 2).notes == ("a.safetensors is given twice, so its weights count twice",)
    assert cs.average([f"{name}.safetensors" for name in "abcd"]).notes == (
        "c.safetensors has the same weights as a.safetensors, so these weights count twice",
        "d.safetensors has the same weights as b.safetensors, so these weights count twice",
    )


def test_weights_that_are_given_three_times_are_said_to_count_so() -> None:
    save_file({"w": torch.ones(4)}, "a.safetensors")
    for copy in "cd":
        shutil.copy("a.safetensors", f"{copy}.safetensors")
    for names, said in (
        ("aaa", "a.safetensors is given 3 times, so its weights count 3 times"),
        ("caa", "a.safetensors (given twice) has the same weights as c.safetensors, so these weights count 3 times"),
        ("aca", "c.safetensors has the same weights as a.safetensors (given twice), so these weights count 3 times"),
        (
            "acd",
            "c.safetensors and d.safetensors have the same weights as a.safetensors, so these weights count 3 times",
        ),
    ):
        assert cs.average([f"{name}.safetensors" for name in names]).notes == (said,)


def test_an_adapter_that_is_given_twice_is_said() -> None:
    save_file({"q.weight": torch.zeros(4, 4)}, "base.safetensors")
    peft_folder("a", {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 2)})
    peft_folder("b", {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.zeros(4, 2)})
    assert not cs.lora_merge("base.safetensors", ["a", "b"]).notes
    (note,) = cs.lora_merge("base.safetensors", ["a", "b", "a"]).notes
    assert note.endswith("is given twice, so its weights count twice")


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("number", [2, 5, 11])
def test_a_decay_counts_each_change_as_the_learning_rate_that_it_stands_for(shape: str, number: int) -> None:
    """The average is the first checkpoint, plus each change times the value of the curve at its end."""
    torch.manual_seed(0)
    points = torch.randn(number, 6, dtype=torch.float64)
    for at, point in enumerate(points):
        save_file({"w": point.clone()}, f"{at}.safetensors")
    cs.apply(cs.average([f"{at}.safetensors" for at in range(number)], decay=shape), "out.safetensors")
    rates = [DECAYS[shape](at / number) for at in range(1, number)]
    wanted = points[0] + sum(rate * (points[at + 1] - points[at]) for at, rate in enumerate(rates))
    assert torch.allclose(load_file("out.safetensors")["w"], wanted, rtol=0, atol=1e-14)
    assert sum(decay_weights(shape, number)) == pytest.approx(1, abs=1e-15)
    assert cs.verify("out.safetensors").ok


def test_a_linear_decay_is_the_mean() -> None:
    assert decay_weights("linear", 8) == pytest.approx([1 / 8] * 8, abs=1e-15)


def test_the_average_between_two_running_averages_is_that_of_the_steps_between() -> None:
    torch.manual_seed(0)
    points = torch.randn(20, 5, dtype=torch.float64)
    for steps in (8, 20):
        mean = {"model_avg": {"w": points[:steps].mean(0)}, "model": {"w": points[steps - 1]}}
        torch.save({**mean, "batch_idx_train": steps}, f"{steps}.pt")
    plan = cs.average(["8.pt", "20.pt"], root="model_avg", running="batch_idx_train")
    cs.apply(plan, "out.safetensors")
    assert torch.allclose(load_file("out.safetensors")["w"], points[8:].mean(0), rtol=0, atol=1e-14)
    assert cs.verify("out.safetensors").ok
    assert running_weights([8, 20]) == pytest.approx((-8 / 12, 20 / 12))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"decay": "quadratic"}, "--decay quadratic is unknown. Use linear, 1-sqrt, cosine."),
        ({"decay": "linear", "ema": 0.9}, "--ema and --decay cannot be used together."),
        ({"decay": "linear", "running": "steps"}, "--decay and --running cannot be used together."),
        ({"running": "epochs"}, "--running epochs: 0.pth has no entry epochs with a whole number."),
        ({"running": "w"}, "--running w: 0.pth has no entry w with a whole number."),
        (
            {"running": "count"},
            "--running needs two checkpoints of one run, the older first, but their numbers of steps are 5, 5.",
        ),
    ],
)
def test_weights_that_cannot_be_are_an_error(options: dict[str, Any], why: str, ckpt: Any) -> None:
    for name in PATHS[:2]:
        torch.save({"model": {"w": torch.ones(3)}, "count": 5}, name)
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = ckpt("average", *PATHS[:2], *flags, "-o", "out.pth")
    assert done.code == 2
    assert why in " ".join(done.err.split())
    assert not Path("out.pth").exists()
