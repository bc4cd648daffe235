"""Folders of DeepSpeed ZeRO: the float32 weights that zero_to_fp32.py gives, from files as DeepSpeed lays them out."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError

Tensors = dict[str, torch.Tensor]


class LossScaler:
    """Stands for the objects of DeepSpeed that lie in its files."""


def model() -> tuple[list[Tensors], Tensors, Tensors]:
    """Two groups of parameters (with odd sizes, a scalar and an empty one), buffers, frozen parameters."""
    torch.manual_seed(0)
    first = {
        "a.weight": torch.randn(5, 3),
        "a.bias": torch.randn(5),
        "scale": torch.randn(()),
        "none": torch.randn(0, 2),
    }
    second = {"b.weight": torch.randn(7, 2), "b.gain": torch.randn(1)}
    buffers = {"norm.mean": torch.randn(3).half(), "norm.count": torch.tensor(4)}
    frozen = {"embed": torch.randn(3, 3).half()}
    return [first, second], buffers, frozen


def zero_folder(path: str, stage: int, ranks: int, *, frozen: bool = True, paddings: bool = False) -> Tensors:
    """Write a folder as DeepSpeed does, and return the weights that are in it."""
    groups, buffers, kept = model()
    kept = kept if frozen else {}
    os.makedirs(path)
    free = [[(i + 1) % 3 for i in range(len(group))] if paddings else [0] * len(group) for group in groups]
    flats = _stage_3(groups, ranks) if stage == 3 else _stage_2(groups, ranks, free)
    module = {key: value.half() for group in groups for key, value in group.items()} | buffers | kept
    for rank in range(ranks if stage == 3 else 1):
        fragments = {key: _share(value, rank, ranks) if stage == 3 else value for key, value in kept.items()}
        torch.save(
            {
                "module": module if stage != 3 else dict(buffers),
                "buffer_names": list(buffers),
                "param_shapes": [OrderedDict((key, value.shape) for key, value in group.items()) for group in groups],
                "frozen_param_shapes": OrderedDict((key, value.shape) for key, value in kept.items()) or None,
                "frozen_param_fragments": OrderedDict(fragments) or None,
                "shared_params": {"head.weight": "a.weight"},
                "ds_version": "0.19.8",
                "global_steps": 3,
            },
            f"{path}/zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
            if stage == 3
            else f"{path}/mp_rank_00_model_states.pt",
        )
    for rank in range(ranks):
        state = {
            "loss_scaler": LossScaler(),
            "zero_stage": stage,
            "partition_count": ranks if stage == 3 else [ranks] * len(groups),
            ("fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"): flats[rank],
            **({"param_alignment_paddings": free} if paddings else {}),
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.randn(4)}}},
        }
        name = f"{path}/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_config": {}, "ds_version": "0.19.8"}, name)
    whole = {key: value.float() if value.is_floating_point() else value for key, value in buffers.items()}
    whole |= kept | {key: value for group in groups for key, value in group.items()}
    return whole | {"head.weight": whole["a.weight"]}


def _stage_2(groups: list[Tensors], ranks: int, free: list[list[int]]) -> list[list[torch.Tensor]]:
    """One vector for each group, aligned to 2 x ranks and cut into as many pieces."""
    vectors = []
    for group, paddings in zip(groups, free, strict=True):
        pieces = [
            torch.cat([value.reshape(-1), torch.full((pad,), 99.0)])
            for value, pad in zip(group.values(), paddings, strict=True)
        ]
        vector = torch.cat(pieces)
        vectors.append(torch.cat([vector, torch.zeros(-len(vector) % (2 * ranks))]).chunk(ranks))
    return [[vector[rank].clone() for vector in vectors] for rank in range(ranks)]


def _share(value: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    share = -(-value.numel() // ranks)
    padded = torch.cat([value.reshape(-1), torch.zeros(share * ranks - value.numel(), dtype=value.dtype)])
    return padded[rank * share : (rank + 1) * share].clone()


def _stage_3(groups: list[Tensors], ranks: int) -> list[list[torch.Tensor]]:
    """Of each parameter a piece for each rank; each rank's pieces one behind the other, in sub-groups."""
    return [[torch.cat([_share(v, rank, ranks) for v in group.values()]) for group in groups] for rank in range(ranks)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 12)])
def test_the_weights_of_all_ranks_are_put_together(stage: int, ranks: int, frozen: bool) -> None:
    wanted = zero_folder("d", stage, ranks, frozen=frozen)
    with cs.open_checkpoint("d") as checkpoint:
        assert (checkpoint.format, checkpoint.root) == ("deepspeed zero", "module")
        assert set(checkpoint) == set(wanted)
        assert all(same(checkpoint.tensor(key), value) for key, value in wanted.items())
        assert checkpoint.ties == {"head.weight": "a.weight"}
        assert {extra.key: extra.value for extra in checkpoint.extras}["global_steps"] == 3
    cs.apply(cs.convert("d"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert all(same(load_file("out.safetensors")[key], value) for key, value in wanted.items())


def test_parameters_that_are_padded() -> None:
    wanted = zero_folder("d", 2, 2, paddings=True)
    with cs.open_checkpoint("d") as checkpoint:
        assert all(same(checkpoint.tensor(key), value) for key, value in wanted.items())


def test_the_folder_that_latest_names_is_read(ckpt: Any) -> None:
    wanted = zero_folder("run/global_step3", 3, 2)
    Path("run/latest").write_text("global_step3\n")
    Path("run/zero_to_fp32.py").write_text("raise SystemExit('run')")
    done = ckpt("inspect", "run")
    assert "ZeRO stage 3 of global_step3: float32 weights from the optimizers of 2 ranks" in " ".join(done.err.split())
    plan = cs.transplant("run", "run")
    assert plan.counts == {"copied": len(wanted)}
    Path("p.json").write_text(ckpt("convert", "run", "-n", "--json").out)
    assert ckpt("apply", "p.json", "-o", "out.pth").code == 0
    assert ckpt("verify", "out.pth").code == 0


@pytest.mark.parametrize("name", ["latest", "latest_universal"])
@pytest.mark.parametrize("text", ["../elsewhere", "/etc", "", "..", "\0", "a" * 300, "checkpoints/step_10", "log.txt"])
def test_a_latest_that_names_no_step_is_not_spoken_of(text: str, name: str) -> None:
    zero_folder("elsewhere", 2, 1)
    os.makedirs("run/checkpoints/step_10")
    Path("run/log.txt").write_text("x")
    Path("run", name).write_text(text)
    with pytest.raises(FormatError, match=r"run contains no checkpoint\.$"):
        cs.open_checkpoint("run")
    save_file({"a": torch.ones(2)}, "run/checkpoints/last.safetensors")
    with pytest.raises(FormatError, match="it is a folder with checkpoints in its subfolders: checkpoints") as caught:
        cs.open_checkpoint("run")
    assert caught.value.hint == "Pass one of them: ckpt inspect run/checkpoints"


@pytest.mark.parametrize("name", ["latest", "latest_universal"])
def test_an_empty_latest_is_named_with_the_steps_that_are_there(name: str) -> None:
    zero_folder("run/global_step7", 2, 1)
    Path("run", name).write_text("")
    with pytest.raises(FormatError, match=f"it is a folder whose {name} is empty; the folder has global_step7"):
        cs.open_checkpoint("run")


@pytest.mark.parametrize("name", ["latest", "latest_universal"])
def test_a_step_that_is_missing_is_named_with_those_that_are_there(name: str) -> None:
    zero_folder("run/global_step7", 2, 1)
    Path("run", name).write_text("global_step9\n")
    with pytest.raises(FormatError) as caught:
        cs.open_checkpoint("run")
    said = f"{name} says global_step9, but there is no subfolder of this name; the folder has global_step7."
    assert caught.value.message.endswith(f"it is a folder whose {said}")
    assert caught.value.hint == "Pass one of them: ckpt inspect run/global_step7"


def test_entries_of_the_model_states_that_are_left_out_are_named() -> None:
    zero_folder("d", 2, 1)
    more = {"lr_scheduler": {"step": 3}, "ema": {"w": torch.ones(2)}, "data_sampler": None, "random_ltd": {}}
    changed("d/mp_rank_00_model_states.pt", lambda state: state.update(more))
    with cs.open_checkpoint("d") as checkpoint:
        assert checkpoint.notes[0].endswith("from the optimizers of 1 rank; left out: lr_scheduler, ema")


def test_a_rank_that_is_missing_is_said(ckpt: Any) -> None:
    zero_folder("d", 2, 3)
    os.unlink("d/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")
    done = ckpt("inspect", "d")
    assert (done.code, "states of 2 ranks, but the model was trained on 3" in " ".join(done.err.split())) == (3, True)
    assert "a rank did not save its states" in " ".join(done.err.split())


def test_a_rank_of_another_run_is_said(ckpt: Any) -> None:
    zero_folder("d", 2, 2)
    shutil.copy("d/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "d/bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt")
    said = " ".join(ckpt("inspect", "d").err.split())
    assert "states of 3 ranks, but the model was trained on 2. Move the files of another run out" in said


def test_a_model_that_is_spread_over_ranks_is_refused(ckpt: Any) -> None:
    zero_folder("d", 2, 1)
    torch.save({}, "d/mp_rank_01_model_states.pt")
    done = ckpt("inspect", "d")
    assert (done.code, "optimizer states of some tensor-parallel ranks are missing" in " ".join(done.err.split())) == (
        3,
        True,
    )
    for name in ("mp_rank_{}_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_{}_optim_states.pt"):
        shutil.copy(f"d/{name.format('00')}", f"d/{name.format('01')}")
    done = ckpt("inspect", "d")
    assert (done.code, "a model that is split across ranks, but lacks" in " ".join(done.err.split())) == (
        3,
        True,
    )


def changed(path: str, change: Any) -> None:
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


MODEL = "d/mp_rank_00_model_states.pt"
OPTIM = "d/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
WRONG: dict[str, tuple[str, Any, str]] = {
    "no shapes": (MODEL, lambda s: s.pop("param_shapes"), "has no valid entry param_shapes"),
    "shapes that are none": (MODEL, lambda s: s["param_shapes"][0].update(a=-1), "invalid entry param_shapes"),
    "a larger shape": (MODEL, lambda s: s["param_shapes"][0].update({"a.weight": (10**6, 10**6)}), "too few values"),
    "a smaller shape": (MODEL, lambda s: s["param_shapes"][0].pop("a.weight"), "but those of the ranks have"),
    "another group": (MODEL, lambda s: s["param_shapes"].append({}), "groups of parameters, but"),
    "no module": (MODEL, lambda s: s.pop("module"), "has no valid entry module"),
    "no buffer names": (MODEL, lambda s: s.update(buffer_names=3), "has no valid entry buffer_names"),
    "no frozen parameter": (MODEL, lambda s: s["frozen_param_fragments"].clear(), "lacks the frozen parameters embed"),
    "no optimizer": (OPTIM, lambda s: s.pop("optimizer_state_dict"), "has no valid entry optimizer_state_dict"),
    "no stage": (OPTIM, lambda s: s["optimizer_state_dict"].pop("zero_stage"), "is not the state of a ZeRO optimizer"),
    "no values": (
        OPTIM, lambda s: s["optimizer_state_dict"].pop("single_partition_of_fp32_groups"),
        "has no valid entry single_partition_of_fp32_groups",
    ),
    "values of another type": (
        OPTIM, lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].__setitem__(0, torch.ones(12).half()),
        "different dtypes: float16 and float32",
    ),
    "fewer groups": (
        OPTIM, lambda s: s["optimizer_state_dict"]["single_partition_of_fp32_groups"].pop(), "different numbers of parameter groups",
    ),
    "paddings that are none": (
        OPTIM, lambda s: s["optimizer_state_dict"].update(param_alignment_paddings=[[0]]), "has 1 numbers for group 0, which has 4 parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_states_that_do_not_fit_are_refused(name: str, ckpt: Any) -> None:
    zero_folder("d", 2, 2)
    path, change, message = WRONG[name]
    changed(path, change)
    done = ckpt("inspect", "d")
    assert (done.code, message in " ".join(done.err.split())) == (3, True), done.err


def test_a_frozen_parameter_of_another_shape_is_refused() -> None:
    zero_folder("d", 2, 2)
    changed(MODEL, lambda s: s["frozen_param_fragments"].update(embed=torch.ones(2, 2)))
    with pytest.raises(FormatError, match=r"embed has the shape \(2, 2\), but frozen_param_shapes gives \(3, 3\)"):
        cs.open_checkpoint("d")


def test_a_frozen_parameter_is_missed_in_the_file_that_lacks_it() -> None:
    zero_folder("d", 3, 2)
    second = "d/zero_pp_rank_1_mp_rank_00_model_states.pt"
    changed(second, lambda s: s["frozen_param_fragments"].clear())
    with pytest.raises(FormatError, match=f"{second} lacks the frozen parameters embed"):
        cs.open_checkpoint("d")


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def test_nothing_in_it_is_run() -> None:
    wanted = zero_folder("d", 2, 1)
    for path in (MODEL, OPTIM):
        state = torch.load(path, weights_only=False)
        torch.save({**state, "more": _Payload()}, path)
    assert set(cs.open_checkpoint("d")) == set(wanted)
    assert not Path("canary").exists()


def test_pieces_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats.base import limits

    monkeypatch.setattr(limits, "ZERO_PIECES", 11)
    zero_folder("d", 2, 2)
    with pytest.raises(cs.CheckpointError, match="could have up to 12 pieces"):
        cs.open_checkpoint("d")


def test_weights_beside_the_states_are_taken_and_the_states_named(ckpt: Any) -> None:
    """As the Trainer of transformers leaves it: checkpoint-500/{model.safetensors, latest, global_step500/}."""
    wanted = zero_folder("checkpoint-500/global_step500", 2, 2)
    Path("checkpoint-500/latest").write_text("global_step500")
    save_file({"a": torch.ones(1)}, "checkpoint-500/model.safetensors")
    done = ckpt("inspect", "checkpoint-500")
    assert (done.code, "safetensors" in done.out) == (0, True)
    assert "latest refers to a folder of training states" in " ".join(done.err.split())
    assert set(cs.open_checkpoint("checkpoint-500/global_step500")) == set(wanted)
    Path("checkpoint-500/latest").write_text("global_step600")
    said = "it is a folder whose latest says global_step600, but there is no subfolder of this name; the folder has"
    (note,) = (one for one in cs.open_checkpoint("checkpoint-500").notes if "latest" in one)
    assert note == f"only the weights in the folder itself were read: {said} global_step500"


def test_a_tag_of_any_name_that_is_missing_is_named_with_the_subfolder_that_is_there() -> None:
    zero_folder("run/first", 2, 1)
    Path("run/latest").write_text("second")
    with pytest.raises(FormatError) as caught:
        cs.open_checkpoint("run")
    said = "subfolders: first; its file latest says second, but there is no such subfolder."
    assert caught.value.message.endswith(said)
    assert caught.value.hint == "Pass one of them: ckpt inspect run/first"


def test_flat_vectors_that_repeat_a_number_are_refused() -> None:
    zero_folder("d", 2, 1)
    name = "single_partition_of_fp32_groups"
    changed(OPTIM, lambda s: s["optimizer_state_dict"][name].__setitem__(0, torch.ones(1).expand(10**6)))
    with pytest.raises(FormatError, match=f"has no valid entry {name}"):
        cs.open_checkpoint("d")


def test_statistics_read_each_vector_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ckptsurgeon.engine.checksums as checksums

    zero_folder("d", 2, 2)
    checked = []
    check = checksums.check_storage
    monkeypatch.setattr(
        checksums, "check_storage", lambda file, storage: checked.append(storage) or check(file, storage)
    )
    cs.inspect("d", stats=True)
    assert len(checked) == len(set(checked)) > 3


@pytest.mark.parametrize("stage", [2, 3])
def test_the_optimizer_states_of_one_rank_say_to_pass_the_folder(stage: int) -> None:
    zero_folder("d", stage, 2)
    name = next(name for name in os.listdir("d") if name.endswith("_optim_states.pt"))
    with pytest.raises(FormatError, match="it has the optimizer states of one rank of DeepSpeed ZeRO") as caught:
        cs.open_checkpoint(f"d/{name}")
    assert caught.value.hint == "Pass the folder with the files of all ranks."
