"""Megatron's checkpoints of ranks: a small model is shared out by Megatron's rules, and put together again."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.util.notes import is_serious

Tensors = dict[str, torch.Tensor]
HIDDEN, HEADS, GROUPS, WIDTH, ROWS, LAYERS = 8, 4, 4, 2, 12, 4


def args(**fields: Any) -> argparse.Namespace:
    known = {
        "swiglu": True, "group_query_attention": True, "num_query_groups": GROUPS, "expert_model_parallel_size": 1,
        "untie_embeddings_and_output_weights": True, "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2,
    }  # fmt: skip
    return argparse.Namespace(**{**known, **fields})


def whole(layers: int = LAYERS) -> Tensors:
    torch.manual_seed(0)
    made = {"embedding.word_embeddings.weight": torch.randn(ROWS, HIDDEN)}
    for n in range(layers):
        at = f"decoder.layers.{n}."
        made |= {
            f"{at}self_attention.linear_qkv.weight": torch.randn(GROUPS * 3 * WIDTH, HIDDEN),
            f"{at}self_attention.linear_qkv.bias": torch.randn(GROUPS * 3 * WIDTH),
            f"{at}self_attention.linear_qkv.layer_norm_weight": torch.randn(HIDDEN),
            f"{at}self_attention.linear_proj.weight": torch.randn(HIDDEN, HEADS * WIDTH),
            f"{at}self_attention.linear_proj.bias": torch.randn(HIDDEN),
            f"{at}mlp.linear_fc1.weight": torch.randn(2 * 8, HIDDEN),
            f"{at}mlp.linear_fc2.weight": torch.randn(HIDDEN, 8),
        }
    return {
        **made,
        "decoder.final_layernorm.weight": torch.randn(HIDDEN),
        "output_layer.weight": torch.randn(ROWS, HIDDEN),
    }


def part(key: str, value: torch.Tensor, rank: int, ranks: int, *, gated: bool) -> torch.Tensor:
    """What one rank of tensor parallelism has of a tensor."""
    if "linear_fc1.weight" in key and gated:
        return torch.cat([half.chunk(ranks)[rank] for half in value.chunk(2)])
    if key.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return value.chunk(ranks, 1)[rank].clone()
    if key.endswith(("qkv.weight", "qkv.bias", "fc1.weight", "word_embeddings.weight", "output_layer.weight")):
        return value.chunk(ranks)[rank].clone()
    return value


def stage_of(key: str, stage: int, stages: int) -> str:
    """The name that a stage of the pipeline gives to a tensor; '' if it does not have it."""
    if key.startswith("decoder.layers."):
        number, _, rest = key.removeprefix("decoder.layers.").partition(".")
        mine, each = divmod(int(number), LAYERS // stages), LAYERS // stages
        return f"decoder.layers.{int(number) % each}.{rest}" if mine[0] == stage else ""
    wanted = 0 if key.startswith("embedding") else stages - 1
    return key if stage == wanted else ""


def save(path: str, tensor: int, pipeline: int, *, flat: bool = False, **fields: Any) -> Tensors:
    """Write the folders of all ranks, and return the whole model; ``flat`` makes tensors views of one buffer."""
    weights = whole()
    said = args(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, **fields)
    for stage in range(pipeline):
        for rank in range(tensor):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pipeline > 1 else "")
            model = {
                named: part(key, value, rank, tensor, gated=said.swiglu)
                for key, value in weights.items()
                if (named := stage_of(key, stage, pipeline))
            }
            if flat:
                buffer, at = torch.cat([value.reshape(-1) for value in model.values()]), 0
                for key, value in model.items():
                    model[key] = buffer[at : at + value.numel()].view(value.shape)
                    at += value.numel()
            model["decoder.layers.0.mlp.linear_fc1._extra_state"] = None  # type: ignore[assignment]
            os.makedirs(f"{path}/{name}")
            state = {
                "args": said,
                "checkpoint_version": 3.0,
                "iteration": 10,
                "model": model,
                "optimizer": {},
                "rng_state": [],
            }
            torch.save(state, f"{path}/{name}/model_optim_rng.pt")
    return weights


def same(path: str, wanted: Tensors) -> bool:
    with cs.open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "megatron"
        assert set(checkpoint) == set(wanted)
        return all(torch.equal(checkpoint.tensor(key), value) for key, value in wanted.items())


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (2, 4)])
def test_the_parts_of_all_ranks_are_put_together(tensor: int, pipeline: int, flat: bool) -> None:
    wanted = save("d", tensor, pipeline, flat=flat)
    assert same("d", wanted)
    cs.apply(cs.convert("d"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert all(torch.equal(load_file("out.safetensors")[key], value) for key, value in wanted.items())


def test_whole_tensors_that_cannot_be_compared_between_ranks_are_said() -> None:
    save("d", 2, 1)
    for path in Path("d").glob("*/model_optim_rng.pt"):
        state = torch.load(path, weights_only=False)
        key = next(key for key in state["model"] if key.endswith("norm.weight"))
        state["model"][key] = state["model"][key].repeat_interleave(2)[::2]
        torch.save(state, path)
    said = "1 tensor that should be equal on all ranks could not be compared; the tensor of the first rank is used: "
    assert f"{said}{key}" in cs.inspect("d").notes


def test_layers_that_are_not_gated() -> None:
    assert same("d", save("d", 2, 1, swiglu=False))


def test_the_last_iteration_is_read_and_what_is_left_out_is_named(ckpt: Any) -> None:
    wanted = save("run/iter_0000010", 2, 2)
    Path("run/latest_checkpointed_iteration.txt").write_text("10")
    done = ckpt("inspect", "run")
    said = " ".join(done.err.split())
    assert (done.code, "2 ranks of tensor parallelism in 2 stages; left out: optimizer, rng_state" in said) == (0, True)
    assert "left out 2 entries other than weights, such as decoder.layers.0.mlp.linear_fc1._extra_state" in said
    assert same("run", wanted)


def test_every_entry_beside_the_model_that_is_left_out_is_named() -> None:
    save("d", 2, 1)
    on(0, lambda state: state.update(lr_scheduler={}, ema_model={}))()
    with cs.open_checkpoint("d") as checkpoint:
        assert checkpoint.notes[0].endswith("left out: optimizer, rng_state, lr_scheduler, ema_model")


def test_nested_models_of_older_versions() -> None:
    weights = {"attention.query_key_value.weight": torch.randn(12, 4), "attention.dense.weight": torch.randn(4, 4)}
    for rank in range(2):
        os.makedirs(f"d/mp_rank_{rank:02d}")
        layers = {
            f"layers.0.{key}": value.chunk(2, int("dense" in key))[rank].clone() for key, value in weights.items()
        }
        model = {
            "language_model": {
                "encoder": layers,
                "embedding": {"word_embeddings": {"weight": torch.full((2, 4), rank)}},
            }
        }
        state = {"args": args(pipeline_model_parallel_size=1), "checkpoint_version": 3.0, "model": model}
        torch.save(state, f"d/mp_rank_{rank:02d}/model_optim_rng.pt")
    with cs.open_checkpoint("d") as checkpoint:
        for key, value in weights.items():
            assert torch.equal(checkpoint.tensor(f"language_model.encoder.layers.0.{key}"), value)
        found = checkpoint.tensor("language_model.embedding.word_embeddings.weight")
        assert found[:, 0].tolist() == [0, 0, 1, 1]


def test_chunks_of_an_interleaved_pipeline_are_in_order() -> None:
    norms = [torch.full((2,), float(n)) for n in range(4)]
    for stage in range(2):
        os.makedirs(f"d/mp_rank_00_{stage:03d}")
        chunks = {f"model{n}": {"decoder.layers.0.input_layernorm.weight": norms[2 * n + stage]} for n in range(2)}
        said = args(tensor_model_parallel_size=1)
        torch.save({"args": said, **chunks}, f"d/mp_rank_00_{stage:03d}/model_optim_rng.pt")
    with cs.open_checkpoint("d") as checkpoint:
        for n, norm in enumerate(norms):
            assert torch.equal(checkpoint.tensor(f"decoder.layers.{n}.input_layernorm.weight"), norm)


def test_chunks_of_a_virtual_stage_that_do_not_fit_are_named() -> None:
    torch.manual_seed(0)
    for stage in range(2):
        os.makedirs(f"d/mp_rank_00_{stage:03d}")
        chunks = {f"model{n}": {"decoder.layers.0.mlp.linear_fc2.weight": torch.randn(4, 4)} for n in range(2)}
        torch.save({"args": args(tensor_model_parallel_size=1), **chunks}, rank_file(0, stage))
    assert warnings() == []
    edit(rank_file(0, 1), lambda state: state.update(model1=state["model0"]))
    (said,) = warnings()
    assert said.startswith("model1 of d/mp_rank_00_001/model_optim_rng.pt has the same layers as model0 of d/mp_rank_0")
    wide = {"decoder.layers.0.mlp.linear_fc2.weight": torch.randn(4, 4).double()}
    edit(rank_file(0, 1), lambda state: state.update(model1=wide))
    (said,) = warnings()
    assert said.startswith("the stages have layers of different dtypes: model1 of d/mp_rank_00_001/model_optim_rng.pt")
    for change in (lambda state: state.update(model2=wide), lambda state: state.pop("model2") and state.pop("model1")):
        edit(rank_file(0, 1), change)
        with pytest.raises(
            cs.FormatError, match=r"d/mp_rank_00_001/model_optim_rng.pt has model0.* has model0, model1"
        ):
            cs.open_checkpoint("d")


def test_a_tied_output_layer_of_the_last_stage_is_left_out() -> None:
    wanted = save("d", 1, 2, untie_embeddings_and_output_weights=False)
    embedding = wanted["embedding.word_embeddings.weight"]
    changed("d/mp_rank_00_001", lambda state: state["model"].update({"output_layer.weight": embedding}))
    assert same("d", {key: value for key, value in wanted.items() if key != "output_layer.weight"})
    changed("d/mp_rank_00_001", lambda state: state["model"].update({"output_layer.weight": embedding + 1}))
    with pytest.raises(cs.FormatError, match="is tied to the word embedding"):
        cs.open_checkpoint("d")


def test_a_stage_that_predicts_later_tokens_has_a_copy_of_the_word_embedding() -> None:
    wanted = save("d", 2, 2)
    wanted["mtp.layers.0.enorm.weight"] = torch.arange(float(HIDDEN))
    words = wanted["embedding.word_embeddings.weight"]

    def give(rank: int, value: torch.Tensor) -> None:
        own = {
            "embedding.word_embeddings.weight": value.chunk(2)[rank].clone(),
            "mtp.layers.0.enorm.weight": wanted["mtp.layers.0.enorm.weight"],
        }
        changed(f"d/mp_rank_{rank:02d}_001", lambda state: state["model"].update(own))

    for rank in range(2):
        give(rank, words)
    assert same("d", wanted)
    give(0, words + 1)
    with pytest.raises(cs.FormatError, match=r"embedding\.word_embeddings\.weight is tied .* has different values"):
        cs.open_checkpoint("d")


def test_only_a_stage_that_predicts_may_have_the_word_embedding_again() -> None:
    words = save("d", 1, 2)["embedding.word_embeddings.weight"]
    changed("d/mp_rank_00_001", lambda state: state["model"].update({"embedding.word_embeddings.weight": words}))
    with pytest.raises(cs.FormatError, match="which an earlier pipeline stage has, too"):
        cs.open_checkpoint("d")


def changed(folder: str, change: Callable[[Any], object]) -> None:
    state = torch.load(f"{folder}/model_optim_rng.pt", weights_only=False)
    change(state)
    torch.save(state, f"{folder}/model_optim_rng.pt")


def on(rank: int, change: Callable[[Any], object]) -> Callable[[], None]:
    return lambda: changed(f"d/mp_rank_{rank:02d}", change)


def model(rank: int, **fields: Any) -> Callable[[], None]:
    return on(
        rank, lambda state: state["model"].update({key.replace("__", "."): value for key, value in fields.items()})
    )


def argued(**fields: Any) -> Callable[[], None]:
    return on(0, lambda state: vars(state["args"]).update(fields))


QKV = "decoder__layers__0__self_attention__linear_qkv__weight"
WRONG: dict[str, tuple[Callable[[], object], str, str]] = {
    "a rank less": (lambda: os.rename("d/mp_rank_00", "d/mp_rank_02"), "lacks the folders of some ranks: mp_rank_00", "ranks"),
    "a file less": (lambda: os.unlink("d/mp_rank_01/model_optim_rng.pt"), "has no model_optim_rng.pt in mp_rank_01", "ranks"),
    "another number of ranks": (argued(tensor_model_parallel_size=4), "tensor_model_parallel_size 4, but the folders of its ranks are those of a run with 2", "ranks"),
    "stages that are missing": (argued(pipeline_model_parallel_size=2), "pipeline_model_parallel_size 2, but", "ranks"),
    "a rank with two folders": (
        lambda: shutil.copytree("d/mp_rank_01", "d/mp_rank_01_000"),
        "d has two folders of one rank: mp_rank_01 and mp_rank_01_000", "ranks",
    ),
    "experts whose folders look like stages": (
        lambda: [
            argued(expert_model_parallel_size=2)(),
            *(os.rename(f"d/mp_rank_{rank:02d}", f"d/mp_rank_00_{rank:03d}") for rank in range(2)),
        ],
        "experts are split across 2 ranks", "megatron layer",
    ),
    "one name twice": (
        on(1, lambda s: s["model"].update({"decoder": {"final_layernorm.weight": torch.ones(HIDDEN)}})),
        "mp_rank_01/model_optim_rng.pt: two values have the same dotted key, decoder.final", "duplicate key",
    ),
    "experts": (argued(expert_model_parallel_size=2), "experts are split across 2 ranks", "megatron layer"),
    "folders of experts": (lambda: os.makedirs("d/mp_rank_00_000_001"), "experts that are split", "megatron layer"),
    "few groups": (argued(num_query_groups=1), "1 query group, fewer than the 2 ranks", "megatron layer"),
    "other activations": (argued(quick_geglu=True), "the argument quick_geglu is set", "megatron layer"),
    "no arguments": (on(0, lambda s: s.pop("args")), "no arguments say whether its layers are gated", "megatron layer"),
    "an old version": (on(0, lambda s: s.update(checkpoint_version=0.0)), "version 0.0: before 1.0", "megatron version"),
    "an unknown layer": (
        lambda: [model(rank, odd__weight=torch.full((2,), rank))() for rank in range(2)], "it is not known how this tensor",
        "megatron layer",
    ),
    "an unknown layer that cannot be compared": (
        lambda: [model(rank, odd__weight=torch.ones(4, 2).t())() for rank in range(2)],
        "odd.weight cannot be compared between the ranks, and it is not known how this tensor", "megatron layer",
    ),
    "norms that differ": (model(1, decoder__final_layernorm__weight=torch.ones(HIDDEN)), "but each rank should have the same: the files are not of one", "megatron layer"),
    "a tensor less": (on(1, lambda s: s["model"].pop("output_layer.weight")), "do not have the same tensors", "rank keys"),
    "another shape": (model(1, **{QKV: torch.ones(3, HIDDEN)}), "linear_qkv.weight is float32 (3, 8)", "rank shapes"),
    "no model": (on(1, lambda s: s.pop("model")), "lacks the entry model", "megatron"),
    "a model that is none": (on(1, lambda s: s.update(model=[1])), "a model that is not a dict", "megatron"),
    "keys that are none": (on(1, lambda s: s["model"].update({3: 4})), "a key that is not a string", "megatron"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_ranks_that_do_not_fit_are_refused(name: str, ckpt: Any) -> None:
    save("d", 2, 1)
    change, said, _ = WRONG[name]
    change()
    done = ckpt("inspect", "d")
    assert (done.code, said in " ".join(done.err.split())) == (3, True), done.err


TRACKER = "latest_checkpointed_iteration.txt"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("11", "says 11, but there is no subfolder iter_0000011"),
        ("../elsewhere", "says ../elsewhere, but there is no subfolder of this name"),
        ("", "is empty"),
        ("-1", "says -1, but"),
        ("²", "says ²"),
        ("\0", r"says \x00"),
        ("9" * 60, "says 999"),
        ("10000011", "says 10000011, but there is no subfolder iter_10000011"),
    ],
)
def test_a_last_iteration_that_is_missing_is_named_with_those_that_are_there(text: str, says: str) -> None:
    save("run/iter_0000009", 1, 1)
    save("run/iter_0000010", 1, 1)
    Path("run", TRACKER).write_text(text)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("run")
    assert f"a run of Megatron whose {TRACKER} {says}" in caught.value.message
    assert caught.value.message.endswith("; the folder has iter_0000009, iter_0000010.")
    assert caught.value.hint == "Pass one of them: ckpt inspect run/iter_0000010"


def test_a_run_without_its_last_iteration_is_described() -> None:
    for folder in ("iter_9999999", "iter_10000000", "release"):
        save(f"run/{folder}", 1, 1)
    said = f"a run of Megatron without {TRACKER}; the folder has iter_9999999, iter_10000000."
    with pytest.raises(cs.FormatError, match=said) as caught:
        cs.open_checkpoint("run")
    assert caught.value.hint == "Pass one of them: ckpt inspect run/iter_10000000"


def test_release_is_named_before_the_iterations() -> None:
    save("run/iter_0000010", 1, 1)
    save("run/release", 1, 1)
    Path("run", TRACKER).write_text("11")
    with pytest.raises(cs.FormatError, match=r"; the folder has release, iter_0000010\.") as caught:
        cs.open_checkpoint("run")
    assert caught.value.hint == "Pass one of them: ckpt inspect run/iter_0000010"


def test_a_folder_that_only_has_a_release_is_not_taken_for_a_run() -> None:
    os.makedirs("target/release")
    Path("target/CACHEDIR.TAG").write_text("x")
    with pytest.raises(cs.FormatError, match="target contains no checkpoint"):
        cs.open_checkpoint("target")


def rank_file(tensor: int, pipeline: int) -> str:
    return f"d/mp_rank_{tensor:02d}_{pipeline:03d}/model_optim_rng.pt"


def edit(path: str, change: Callable[[Any], Any]) -> None:
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


def warnings(path: str = "d") -> list[str]:
    with cs.open_checkpoint(path) as checkpoint:
        return [note for note in checkpoint.notes if is_serious(note)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state.update(iteration=20),
            "has iteration 20, but .* has 10: the files are not from the same run",
        ),
        (
            lambda state: setattr(state["args"], "tensor_model_parallel_size", 4),
            "has tensor_model_parallel_size 4, but",
        ),
        (
            lambda state: setattr(state["args"], "pipeline_model_parallel_size", 8),
            "has pipeline_model_parallel_size 8,",
        ),
    ],
)
@pytest.mark.parametrize("place", [(1, 0), (0, 1), (1, 1)])
def test_ranks_of_several_runs_are_an_error(place: tuple[int, int], change: Callable[[Any], Any], said: str) -> None:
    save("d", 2, 2)
    edit(rank_file(*place), change)
    with pytest.raises(cs.FormatError, match=said):
        cs.open_checkpoint("d")


@pytest.mark.parametrize("rank", [0, 1])
def test_each_ranks_part_of_a_tied_output_layer_is_compared(rank: int) -> None:
    save("d", 2, 2, untie_embeddings_and_output_weights=False)
    for each in range(2):
        words = torch.load(rank_file(each, 0), weights_only=False)["model"]["embedding.word_embeddings.weight"]
        edit(
            rank_file(each, 1), lambda state, words=words: state["model"].update({"output_layer.weight": words.clone()})
        )
    assert warnings() == []
    edit(rank_file(rank, 1), lambda state: state["model"]["output_layer.weight"].add_(1))
    with pytest.raises(cs.FormatError, match="output_layer.weight is tied to the word embedding, but has different v"):
        cs.open_checkpoint("d")


def test_a_stage_that_is_a_copy_of_another_is_named(ckpt: Any) -> None:
    save("d", 1, 4)
    assert warnings() == []
    shutil.copy(rank_file(0, 1), rank_file(0, 2))
    (said,) = warnings()
    assert said.startswith("d/mp_rank_00_002/model_optim_rng.pt has the same layers as d/mp_rank_00_001/")
    assert "warning: d/mp_rank_00_002/" in ckpt("convert", "d", "-o", "o.pth", "-q").err


def test_layers_of_one_value_are_no_copies() -> None:
    save("d", 1, 4)
    for stage in range(4):
        edit(rank_file(0, stage), lambda state: [one.fill_(1) for one in state["model"].values() if one is not None])
    assert warnings() == []


def test_a_stage_of_another_dtype_is_named() -> None:
    save("d", 2, 2)
    for rank in range(2):
        edit(
            rank_file(rank, 1),
            lambda state: state["model"].update({k: v.half() for k, v in state["model"].items() if v is not None}),
        )
    (said,) = warnings()
    assert said.startswith(
        "the stages have layers of different dtypes: d/mp_rank_00_001/model_optim_rng.pt has float16"
    )


@pytest.mark.parametrize(
    ("number", "said"), [(LAYERS, []), (6, ["decoder.layers. has 4 layers in all stages, but the"])]
)
def test_layers_that_the_arguments_count_and_no_stage_has_are_named(number: int, said: list[str]) -> None:
    save("d", 2, 2, num_layers=number)
    assert [note[:51] for note in warnings()] == said


def test_a_file_of_one_rank_says_that_it_is_a_part() -> None:
    save("d", 2, 2)
    (said,) = warnings(rank_file(0, 0))
    assert said.startswith(
        "the file has the weights of one rank of a run with 2 ranks of tensor parallelism and 2 stages"
    )
    save("e", 1, 1)
    assert warnings("e/mp_rank_00/model_optim_rng.pt") == []


def test_a_file_with_virtual_stages_or_experts_says_that_it_is_a_part() -> None:
    save("d", 2, 2)
    edit(rank_file(0, 0), lambda state: state.update(model0=state["model"], model1=state.pop("model")))
    assert warnings(rank_file(0, 0))[0].startswith("the file has the weights of one rank of a run with 2 ranks")
    save("e", 1, 1, expert_model_parallel_size=4)
    (said,) = warnings("e/mp_rank_00/model_optim_rng.pt")
    assert said.startswith("the file has the experts of one of 4 ranks: convert the checkpoint")
