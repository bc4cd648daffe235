"""A model is a folder: what lies beside the weights goes along, as it is true of the output, or it is said why not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.util.notes import is_serious

from ...helpers.hub.server import Hub

LAYERS = 3
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c", "d"]
BESIDE = {"config.json", "generation_config.json", "tokenizer_config.json", "vocab.json"}


def model(
    path: str, *, dtype: torch.dtype = torch.float32, tokens: list[str] = TOKENS, rows: int = 0, seed: int = 0,
    **more: Any,
) -> str:  # fmt: skip
    """A small folder in transformers' manner, which no transformers is needed for."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (rows or len(tokens), 4),
        "model.norm.weight": (4,),
        "lm_head.weight": (rows or len(tokens), 4),
    }
    shapes |= {f"model.layers.{i}.mlp.weight": (4, 4) for i in range(LAYERS)}
    Path(path).mkdir()
    save_file(
        {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}, f"{path}/model.safetensors"
    )
    config = {
        "model_type": "llama", "num_hidden_layers": LAYERS, "vocab_size": rows or len(tokens), "tie_word_embeddings": False,
        "eos_token_id": 2, "pad_token_id": 0, "dtype": str(dtype).removeprefix("torch."), **more,
    }  # fmt: skip
    Path(path, "config.json").write_text(json.dumps(config))
    Path(path, "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4], "suppress_tokens": [5, 7]}))
    Path(path, "tokenizer_config.json").write_text('{"model_max_length": 8}')
    Path(path, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    Path(path, "README.md").write_text("not ours to carry")
    Path(path, "modeling_x.py").write_text("raise SystemExit")
    return path


def beside(path: str) -> set[str]:
    return {
        name for name in os.listdir(path) if not name.startswith(("model", "ckptsurgeon", "pytorch_model", "__0", "."))
    }


def config_of(path: str) -> dict[str, Any]:
    return json.loads(Path(path, "config.json").read_text())


def test_convert_carries_all_and_changes_nothing() -> None:
    cs.apply(cs.convert(model("m")), "out")
    assert beside("out") == BESIDE
    for name in BESIDE:
        assert Path("out", name).read_bytes() == Path("m", name).read_bytes()
    assert cs.verify("out").ok


@pytest.mark.parametrize("to", ["safetensors", "pth", "dcp"])
def test_a_folder_of_every_format_has_the_files(to: str) -> None:
    cs.apply(cs.convert(model("m")), "out", to=to)
    assert beside("out") == BESIDE


def test_shards_have_the_files() -> None:
    cs.apply(cs.convert(model("m")), "out", max_shard_size="300B")
    assert set(os.listdir("out")) >= BESIDE


def wrapped(prefix: str) -> str:
    """A model whose keys have the prefix of a wrapper, as training saved them."""
    state = load_file(f"{model('m')}/model.safetensors")
    save_file({f"{prefix}{key}": one for key, one in state.items()}, "m/model.safetensors")
    return "m"


NOT_LOADED = "every key begins with {}: from_pretrained loads none of these tensors"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_that_from_pretrained_does_not_know_is_said_by_every_verb(prefix: str) -> None:
    said = NOT_LOADED.format(prefix)
    assert said in cs.inspect(wrapped(prefix)).notes
    for plan in (cs.convert("m"), cs.convert("m", dtype="bf16"), cs.filter("m", exclude=["**.layers.2"])):
        assert [is_serious(note) for note in plan.notes if said in note] == [True]
    assert not any("every key" in note for note in cs.convert("m", unwrap=True).notes)


@pytest.mark.parametrize("options", [{"ruleset": "ddp"}, {"map": "module="}, {"map": "module.**=**"}, {"unwrap": True}])
def test_a_configuration_goes_along_if_only_a_wrapper_is_removed(options: dict[str, Any]) -> None:
    plan = cs.rename(wrapped("module."), **options)
    assert not any("config.json" in note or "every key" in note for note in plan.notes)
    cs.apply(plan, "out")
    assert beside("out") == BESIDE
    assert "lm_head.weight" in load_file("out/model.safetensors")


def test_a_configuration_stays_behind_if_keys_are_renamed_too() -> None:
    plan = cs.rename(wrapped("module."), map=["module.lm_head=head", "module="])
    cs.apply(plan, "out")
    assert "config.json" not in beside("out")


class CountedTies(dict[str, str]):
    walks = 0

    def items(self) -> Any:
        CountedTies.walks += 1
        return super().items()


def test_what_an_edit_takes_is_gathered_once_however_many_tensors_there_are() -> None:
    from ckptsurgeon.api.model_folder.folder import model_folder_at
    from ckptsurgeon.api.model_folder.output import edited_folder

    plan = cs.convert(model("m"))
    edited_folder(plan, model_folder_at("m"), cs.open_checkpoint("m"), CountedTies())
    assert CountedTies.walks == 1


def test_convert_to_another_dtype_says_it_in_the_configuration() -> None:
    plan = cs.convert(model("m"), dtype="bf16")
    cs.apply(plan, "out")
    assert config_of("out") == config_of("m") | {"dtype": "bfloat16"}
    assert beside("out") == BESIDE


def test_a_single_file_has_nothing_beside_it() -> None:
    cs.apply(cs.convert(model("m")), "out.safetensors")
    assert set(os.listdir()) == {"m", "out.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_the_weights_file_of_a_folder_is_the_model(name: str) -> None:
    if name != "model.safetensors":
        cs.apply(cs.convert(model("m")), "m2", max_shard_size="300B")
    else:
        model("m2")
    cs.apply(cs.convert(f"m2/{name}"), "out")
    assert beside("out") == BESIDE


def test_another_file_in_the_folder_is_no_model_of_it() -> None:
    model("m")
    save_file({"x": torch.ones(2)}, "m/other.safetensors")
    cs.apply(cs.convert("m/other.safetensors"), "out")
    assert beside("out") == set()


def test_filter_of_the_last_layers_changes_their_number() -> None:
    plan = cs.filter(model("m"), exclude=["model.layers.{1..2}"])
    cs.apply(plan, "out")
    assert config_of("out") == config_of("m") | {"num_hidden_layers": 1}
    assert beside("out") == BESIDE
    assert any("1 of the 3 layers" in note for note in plan.notes)


@pytest.mark.parametrize("exclude", [["model.layers.0"], ["lm_head"], ["model.layers.2", "lm_head"], ["model.layers"]])
def test_filter_that_leaves_out_more_has_no_configuration_and_says_why(exclude: list[str]) -> None:
    plan = cs.filter(model("m"), exclude=exclude)
    cs.apply(plan, "out")
    assert beside("out") == BESIDE - {"config.json"}
    (note,) = (note for note in plan.notes if "config.json" in note)
    assert re.search(r"is not copied into an output folder: it describes \d tensors? that (is|are) left out", note)


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_windows": [4, 4, 8]},
        {"layer_ids": [0, 2]},
        {"attention_types": [[["global", "local"], 3]]},
        {"out_indices": [-1]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_configuration_that_speaks_of_layers_otherwise_does_not_go_along(fields: dict[str, Any]) -> None:
    plan = cs.filter(model("m", **fields), exclude=["model.layers.2"])
    cs.apply(plan, "out")
    assert beside("out") == BESIDE - {"config.json"}
    (note,) = (note for note in plan.notes if "config.json" in note)
    assert f"its {next(iter(fields))} still has values for all 3 layers" in note


def test_a_configuration_whose_lists_are_known_is_cut_with_the_layers() -> None:
    fields = {"cross_attention_layers": [0, 2], "architectures": ["X"], "eos_token_id": [2, 3, 4]}
    model("m", **fields, layer_types=["full", "sliding", "full"])
    cs.apply(cs.filter("m", exclude=["model.layers.2"]), "out")
    cut = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"], "cross_attention_layers": [0]}
    assert config_of("out") == config_of("m") | cut


@pytest.mark.parametrize("own", [True, False])
def test_a_number_of_layers_that_two_lists_share_is_not_changed_for_one(own: bool) -> None:
    Path("t5").mkdir()
    keys = [f"{side}.block.{i}.w" for side in ("encoder", "decoder") for i in range(3)]
    save_file({key: torch.ones(2) for key in keys}, "t5/model.safetensors")
    config = {"model_type": "t5", "num_layers": 3, **({"num_decoder_layers": 3} if own else {})}
    Path("t5/config.json").write_text(json.dumps(config))
    for side, field in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        plan = cs.filter("t5", exclude=[f"{side}.block.2"])
        cs.apply(plan, side)
        if own:
            assert config_of(side) == config | {field: 2}
        else:
            assert "config.json" not in os.listdir(side)
            assert any("its num_layers is also the number of layers of" in note for note in plan.notes)


def test_filter_that_leaves_out_a_name_of_a_tied_tensor_keeps_the_configuration() -> None:
    model("m")
    weight = torch.randn(8, 4)
    state = {"model.embed_tokens.weight": weight, "lm_head.weight": weight, "model.norm.weight": torch.ones(4)}
    torch.save(state, "m/pytorch_model.bin")
    Path("m/model.safetensors").unlink()
    cs.apply(cs.filter("m", exclude=["lm_head"]), "out")
    assert beside("out") == BESIDE


@pytest.mark.parametrize("verb", ["convert", "filter", "rename", "average", "merge", "transplant"])
def test_ids_beyond_the_rows_are_said_once(verb: str) -> None:
    model("m", eos_token_id=[2, 8], pad_token_id=99, vision_config={"vocab_size": 200, "bos_token_id": 150})
    generation = {"eos_token_id": 2, "forced_decoder_ids": [[90, 9]], "sequence_bias": [[[3, 10], 50]], "top_k": 70}
    Path("m/generation_config.json").write_text(json.dumps(generation))
    plan = {
        "convert": lambda: cs.convert("m"),
        "filter": lambda: cs.filter("m", include=["model", "lm_head"]),
        "rename": lambda: cs.rename("m", map=["lm_head=lm_head"]),
        "average": lambda: cs.average(["m", "m/model.safetensors"]),
        "merge": lambda: cs.merge(["m", "m/model.safetensors"], method="linear", weights=[1, 1]),
        "transplant": lambda: cs.transplant("m", "m"),
    }[verb]()
    (note,) = (note for note in plan.notes if "vocabulary size" in note)
    assert note == (
        "the vocabulary size is 8, but eos_token_id of config.json is 8, pad_token_id of config.json is 99, "
        "forced_decoder_ids of generation_config.json is 9, sequence_bias of generation_config.json is 10: "
        "there is no row for these ids; they are written unchanged"
    )


def test_what_only_reads_does_not_say_what_is_written() -> None:
    model("m", eos_token_id=9)
    said = "the vocabulary size is 8, but eos_token_id of config.json is 9: there is no row for these ids"
    assert said in cs.inspect("m").notes
    assert any(one.what == said for row in cs.check("m").rows for one in row.found)


@pytest.mark.parametrize(
    ("field", "status"),
    [("pad_token_id", "fail"), ("text_config.pad_token_id", "fail"), ("audio_pad_token_id", "warn")],
)
def test_only_the_padding_row_of_the_embedding_must_exist(field: str, status: str) -> None:
    place, _, name = field.rpartition(".")
    model("m", **({place: {name: 9}} if place else {name: 9}))
    rows = [row for row in cs.check("m").rows if any("there is no row for these ids" in one.what for one in row.found)]
    assert [row.status.value.lower() for row in rows] == [status]


def test_rename_has_no_configuration_and_says_why() -> None:
    plan = cs.rename(model("m"), map=["model=decoder"])
    cs.apply(plan, "out")
    assert beside("out") == BESIDE - {"config.json"}
    (note,) = (note for note in plan.notes if "config.json" in note)
    assert "model.embed_tokens.weight is renamed to decoder.embed_tokens.weight, and 4 more" in note


def test_operations_have_no_configuration_and_say_why() -> None:
    plan = cs.rename(model("m"), operations=[{"transpose": "model.layers.0.mlp.weight"}])
    assert "config.json" not in {one.name for one in plan.target.companions}
    assert any("is made by transpose" in note for note in plan.notes)


def test_average_carries_the_first_one_s_files() -> None:
    model("a", dtype=torch.bfloat16)
    model("b", seed=1)
    plan = cs.average(["a", "b"])
    cs.apply(plan, "out")
    assert beside("out") == BESIDE
    assert config_of("out")["dtype"] == "bfloat16"


def test_a_checkpoint_as_destination_lends_its_files() -> None:
    model("a")
    model("b", seed=1)
    cs.apply(cs.transplant("a", "b", include=["model.layers"]), "out")
    assert beside("out") == BESIDE
    assert config_of("out") == config_of("b")
    cs.apply(cs.transplant("a", "b", dtype="float16"), "half")
    assert config_of("half")["dtype"] == "float16"


def test_a_checkpoint_as_destination_gets_the_new_list_s_tokeniser_and_ids() -> None:
    model("a")
    new = ["c", "b", "</s>", "<unk>", "a", "<pad>", "d", "é"]
    Path("new").mkdir()
    Path("new/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(new)}))
    keys = ["model.embed_tokens=0", "lm_head=0"]
    plan = cs.transplant("a", "a/../a", vocab=("a/vocab.json", "new/vocab.json"), vocab_keys=keys)
    cs.apply(plan, "out")
    assert (config_of("out")["eos_token_id"], config_of("out")["pad_token_id"]) == (2, 5)
    assert json.loads(Path("out/vocab.json").read_text())["é"] == 7
    assert beside("out") == BESIDE - {"tokenizer_config.json"}
    lost = [token if token != "a" else "x" for token in new]
    Path("new/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(lost)}))
    with pytest.raises(cs.ConfigError, match=r"eos_token_id of generation_config.json is 4 \('a'\)"):
        cs.transplant("a", "a", vocab=("a/vocab.json", "new/vocab.json"), vocab_keys=keys)


def test_lora_merge_that_resizes_the_embedding_changes_the_size_and_the_tokeniser() -> None:
    model("m")
    Path("lora").mkdir()
    prefix = "base_model.model."
    rows = torch.randn(10, 4)
    save_file(
        {
            f"{prefix}model.layers.0.mlp.lora_A.weight": torch.randn(2, 4),
            f"{prefix}model.layers.0.mlp.lora_B.weight": torch.randn(4, 2),
            f"{prefix}model.embed_tokens.weight": rows,
            f"{prefix}lm_head.weight": rows.clone(),
        },
        "lora/adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["mlp"]}
    Path("lora/adapter_config.json").write_text(
        json.dumps({**settings, "modules_to_save": ["embed_tokens", "lm_head"]})
    )
    plan = cs.lora_merge("m", "lora")
    cs.apply(plan, "out")
    assert config_of("out")["vocab_size"] == 10
    assert beside("out") == {"config.json", "generation_config.json"}
    assert any("tokeniser is not copied" in note for note in plan.notes)
    Path("lora/vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*TOKENS, "x", "y"])}))
    cs.apply(cs.lora_merge("m", "lora"), "again")
    assert len(json.loads(Path("again/vocab.json").read_text())) == 10


def adapter(path: str, value: float = 1.0, *, target: str = "base_model.model.a", **more: Any) -> str:
    Path(path).mkdir()
    name = f"{target}.lora_{{}}.weight"
    save_file(
        {name.format("A"): torch.full((2, 4), value), name.format("B"): torch.full((4, 2), value)},
        f"{path}/adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [target.rpartition(".")[2]], **more}
    Path(path, "adapter_config.json").write_text(json.dumps(settings))
    Path(path, "tokenizer_config.json").write_text("{}")
    return path


ADAPTER_FOLDER = {"adapter_model.safetensors", "adapter_config.json", "tokenizer_config.json", "ckptsurgeon.json"}


@pytest.mark.parametrize(
    "plan",
    [
        lambda: cs.average(["a", "b"]),
        lambda: cs.merge(["a", "b"], method="linear", weights=[0.5, 0.5]),
        lambda: cs.transplant("a", "b"),
        lambda: cs.filter("a", include=["base_model"]),
    ],
    ids=["average", "merge", "transplant", "filter"],
)
def test_what_is_made_of_adapters_is_one(plan: Callable[[], cs.Plan]) -> None:
    adapter("a")
    adapter("b", 3.0)
    cs.apply(plan(), "out")
    assert set(os.listdir("out")) == ADAPTER_FOLDER
    assert cs.verify("out").ok
    assert cs.lora_merge({"a.weight": torch.zeros(4, 4)}, "out")


def test_adapters_that_are_scaled_otherwise_are_said_to_be() -> None:
    adapter("a")
    adapter("b", lora_alpha=8, base_model_name_or_path="x")
    (note,) = (note for note in cs.average(["a", "b"]).notes if "adapter_config" in note)
    said = "the adapters differ, according to adapter_config.json: lora_alpha is 8 in b, 4 in a"
    assert note == f"{said}; the output gets the adapter_config.json of a"
    assert not any("adapter_config" in note for note in cs.average(["a", "a/adapter_model.safetensors"]).notes)


@pytest.mark.parametrize(
    ("ours", "numbers"),
    [
        ({"lora_alpha": 8}, "scaled by 2 in the adapter_config.json of a, but by 4 in the adapter_config.json of b"),
        (
            {"use_rslora": True},
            "scaled by 2 in the adapter_config.json of a, but by 2.82843 in the adapter_config.json of b",
        ),
        (
            {"alpha_pattern": {"a": 1}},
            "scaled by 2 in the adapter_config.json of a, but by 0.5 in the adapter_config.json of b",
        ),
    ],
)
def test_factors_do_not_go_beside_another_scale(ours: dict[str, Any], numbers: str) -> None:
    adapter("a")
    adapter("b", 3.0, **ours)
    with pytest.raises(cs.PlanError, match=f"the factors of a are {re.escape(numbers)}, which is copied to the output"):
        cs.transplant("a", "b")


def test_what_else_adapters_count_otherwise_by_is_said_of_a_transplant() -> None:
    adapter("a", use_dora=False, r=2)
    adapter("b", 3.0, fan_in_fan_out=True)
    (note,) = (note for note in cs.transplant("a", "b").notes if "adapter_config" in note)
    assert "fan_in_fan_out is null in a, true in b; the output gets the adapter_config.json of b" in note
    adapter("c", 3.0, alpha_pattern={}, use_rslora=False)
    assert not [note for note in cs.transplant("a", "c").notes if "adapter_config" in note]


def test_an_adapter_stays_one() -> None:
    adapter("lora")
    cs.apply(cs.convert("lora", dtype="bf16"), "out")
    assert set(os.listdir("out")) == ADAPTER_FOLDER
    assert cs.verify("out").ok
    cs.apply(cs.convert("lora"), "out.safetensors")
    receipt = cs.apply(cs.convert("lora"), "dcp", to="dcp")
    assert beside("dcp") == {"tokenizer_config.json"}
    assert any("adapter_config.json" in note for note in receipt.notes)
    cs.apply(cs.rename("lora", map=["base_model.model="]), "renamed")
    assert "adapter_config.json" not in os.listdir("renamed")


def two_modules(path: str, **settings: Any) -> str:
    """An adapter of two modules."""
    adapter(path, target="base_model.model.model.layers.0.mlp", **settings)
    state = load_file(f"{path}/adapter_model.safetensors")
    save_file(
        {key.replace(".0.", f".{n}."): one * (n + 1) for n in (0, 1) for key, one in state.items()},
        f"{path}/adapter_model.safetensors",
    )
    return path


def test_an_adapter_without_some_of_its_modules_stays_one() -> None:
    plan = cs.filter(two_modules("lora"), exclude=["**.layers.1.**"])
    cs.apply(plan, "out")
    assert set(os.listdir("out")) == ADAPTER_FOLDER
    assert cs.verify("out").ok
    assert Path("out/adapter_config.json").read_bytes() == Path("lora/adapter_config.json").read_bytes()
    model("m")
    cs.apply(cs.lora_merge("m", "out"), "merged.safetensors")
    merged, before = load_file("merged.safetensors"), load_file("m/model.safetensors")
    assert [key for key in before if not torch.equal(before[key], merged[key])] == ["model.layers.0.mlp.weight"]


@pytest.mark.parametrize("init", [False, "pissa", None])
def test_an_adapter_that_peft_would_complete_with_other_values_does_not_stay_one(init: Any) -> None:
    """PEFT draws both factors, or takes them from the base; or a module (None) lacks one of its factors."""
    two_modules("lora", **({} if init is None else {"init_lora_weights": init}))
    cs.apply(cs.filter("lora", exclude=["**.layers.1.**" if init is not None else "**.layers.1.mlp.lora_B"]), "out")
    assert "adapter_config.json" not in os.listdir("out")


def test_a_toolkit_s_configuration_is_said_not_to_go_along() -> None:
    Path("exp").mkdir()
    torch.save({"w": torch.ones(2)}, "exp/model.pth")
    Path("exp/config.yaml").write_text("encoder: conformer\n")
    (note,) = cs.convert("exp").target.notes
    assert note == "files in the folder that are not copied: config.yaml"


@pytest.mark.long
def test_a_model_at_an_address_brings_its_files(hub: Hub) -> None:
    files = {
        name: Path(model("m") if not Path("m").exists() else "m", name).read_bytes()
        for name in [*BESIDE, "model.safetensors"]
    }
    hub.repository("org/net", {**files, "README.md": b"x"})
    cs.apply(cs.convert("hf://org/net", dtype="float16"), "out")
    assert beside("out") == BESIDE
    assert config_of("out")["dtype"] == "float16"
    for name in BESIDE - {"config.json"}:
        assert Path("out", name).read_bytes() == files[name]
    Path("p.json").write_text(json.dumps(cs.convert("hf://org/net").to_json()))
    cs.apply("p.json", "again")
    assert beside("again") == BESIDE


@pytest.mark.long
def test_a_diff_of_models_at_addresses_compares_their_files_too(hub: Hub) -> None:
    for name, tokens in (("a", TOKENS), ("b", TOKENS[::-1])):
        folder = Path(model(name, tokens=tokens))
        hub.repository(f"org/{name}", {one: (folder / one).read_bytes() for one in [*BESIDE, "model.safetensors"]})
    for end in ("", "/model.safetensors"):
        (note,) = cs.diff(f"hf://org/a{end}", f"hf://org/b{end}").notes
        assert note.startswith("the tokenisers differ: row 0 is '<pad>' in hf://org/a")


@pytest.mark.costly
@pytest.mark.parametrize("text", ["{broken", "[1]", " " * (17 << 20)], ids=["broken", "list", "large"])
@pytest.mark.parametrize("verb", ["convert", "filter", "average", "merge", "transplant", "lora_merge"])
def test_a_configuration_that_cannot_be_read_refuses_nothing(verb: str, text: str) -> None:
    Path(model("m"), "config.json").write_text(text)
    model("b", seed=1)
    adapter("l", target="base_model.model.model.layers.0.mlp")
    plans: dict[str, Callable[[], cs.Plan]] = {
        "convert": lambda: cs.convert("m", dtype="bf16"),
        "filter": lambda: cs.filter("m", exclude=["model.layers.2"]),
        "average": lambda: cs.average(["m", "b"]),
        "merge": lambda: cs.merge(["m", "b"], method="linear", weights=[0.5, 0.5]),
        "transplant": lambda: cs.transplant("b", "m", dtype="bf16"),
        "lora_merge": lambda: cs.lora_merge("m", "l", dtype="bf16"),
    }
    plan = plans[verb]()
    cs.apply(plan, "out.safetensors")
    cs.apply(plans[verb](), "out")
    assert beside("out") == BESIDE - {"config.json"}
    assert any("config.json is not copied" in note for note in plan.notes)


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_a_configuration_that_is_no_json_stays_behind_which_is_said(dtype: str | None) -> None:
    Path(model("m"), "config.json").write_text("{broken")
    plan = cs.convert("m", dtype=dtype)
    cs.apply(plan, "out")
    assert beside("out") == BESIDE - {"config.json"}
    assert [note for note in plan.target.notes if note.startswith("config.json is not copied: m/config.json is not")]


def noted(path: str) -> list[str]:
    return [note for note in cs.convert(path).notes if "that are not copied" not in note]


@pytest.mark.parametrize("text", ["", "text_"])  # SeamlessM4T has text_encoder and text_decoder
def test_a_number_of_decoder_layers_is_compared_with_the_decoder(text: str, tmp_path: Path) -> None:
    layers = {"encoder": 6, "decoder": 4}
    save_file(
        {
            f"model.{text}{side}.layers.{at}.fc1.weight": torch.zeros(4, 2)
            for side, most in layers.items()
            for at in range(most)
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "speech_to_text", "encoder_layers": 6, "decoder_layers": 5})
    )
    assert [note for note in cs.inspect(tmp_path).notes if "_layers" in note] == [
        f"config.json says 5 (decoder_layers), but model.{text}decoder.layers has 4 layers: transformers initialises the "
        "others"
    ]


@pytest.mark.long
def test_what_the_files_say_otherwise_than_the_weights_gets_a_note() -> None:
    assert noted(model("m")) == []
    (note,) = noted(model("v", vocab_size=50))
    assert note.startswith("config.json says 50 (vocab_size), but model.embed_tokens.weight has 8 rows")
    (note,) = noted(model("l", num_hidden_layers=4))
    assert note == (
        "config.json says 4 (num_hidden_layers), but model.layers has 3 layers: transformers initialises the others"
    )
    (note,) = noted(model("more", num_hidden_layers=2))
    assert (
        note == "config.json says 2 (num_hidden_layers), but model.layers has 3 layers: transformers ignores the others"
    )
    (note,) = noted(model("w", hidden_size=64))
    assert note == (
        "config.json says 64 (hidden_size), but model.embed_tokens.weight has 4 columns: transformers cannot load this model"
    )
    assert noted(model("w2", hidden_size=4)) == noted(model("w3", hidden_size=64, embedding_size=4)) == []
    assert noted(model("w4", hidden_size=64, text_config={"word_embed_proj_dim": 4})) == []
    assert noted(model("n", num_hidden_layers=2, num_nextn_predict_layers=1)) == []
    Path(model("t"), "vocab.json").write_text(json.dumps({str(i): i for i in range(9)}))
    assert noted("t") == [
        "vocab.json has 9 tokens, but model.embed_tokens.weight has 8 rows: the last tokens have no row"
    ]
    Path(model("padded"), "vocab.json").write_text(json.dumps({str(i): i for i in range(7)}))
    assert noted("padded") == []


def decoder(*numbers: int) -> str:
    return json.dumps({"added_tokens_decoder": {str(one): {"content": f"<{one}>"} for one in numbers}})


def tokens(*numbers: int) -> str:
    added = [{"id": one, "content": f"<{one}>"} for one in numbers]
    return json.dumps({"model": {"vocab": {str(i): i for i in range(7)}}, "added_tokens": added})


ADDED = {
    "added_tokens.json": lambda *numbers: json.dumps({f"<{one}>": one for one in numbers}),
    "tokenizer_config.json": decoder,
    "tokenizer.json": tokens,
}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "has_list"), [*((name, True) for name in ADDED), *((name, False) for name in [*ADDED][:2])]
)
def test_added_tokens_beyond_the_rows_get_a_note(name: str, has_list: bool) -> None:
    for path, numbers in (("fits", (7,)), ("one", (12,)), ("two", (7, 9, 12))):
        Path(model(path), name).write_text(ADDED[name](*numbers))
        Path(path, "vocab.json").write_text(json.dumps({str(i): i for i in range(7)}))
        if not has_list or name == "tokenizer.json":
            Path(path, "vocab.json").unlink()
    assert noted("fits") == []
    has = "without a row, since model.embed_tokens.weight has 8 rows"
    for path, said in (("one", "1 token {}: <12> is 12"), ("two", "2 tokens {}: <9> is 9, <12> is 12")):
        about_ids = [note for note in noted(path) if "but no token with the id" in note]
        assert [note for note in noted(path) if note not in about_ids] == [f"{name} adds {said.format(has)}"]
        assert len(about_ids) == (name == "tokenizer.json")  # only the list in this file has the added tokens


@pytest.mark.parametrize(
    "text", ['{"added_tokens_decoder": [1]}', '{"added_tokens_decoder": {"x": {}, "9": 1, "10": {}}}']
)
def test_what_adds_no_tokens_gets_no_note(text: str) -> None:
    Path(model("m"), "tokenizer_config.json").write_text(text)
    assert noted("m") == []


DOCUMENTS = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "preprocessor_config.json", "processor_config.json", "added_tokens.json", "hf_quant_config.json")  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("text", ["{broken", "[1]", "\xff"])
def test_a_broken_file_that_goes_along_gets_a_note(name: str, text: str) -> None:
    Path(model("m"), name).write_bytes(text.encode("latin-1"))
    (note,) = noted("m")
    assert note.startswith(f"{name} is copied unchanged: it is not")
    cs.apply(cs.convert("m"), "out")
    assert Path("out", name).read_bytes() == text.encode("latin-1")


@pytest.mark.costly
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"])
def test_every_verb_says_which_file_is_broken(name: str) -> None:
    for path in (model("m"), model("b", seed=1)):
        Path(path, name).write_text("<html>")
    adapter("l", target="base_model.model.model.layers.0.mlp")
    plans = [
        cs.rename("m", map=["model.layers=model.h"]), cs.filter("m", exclude=["lm_head"]), cs.average(["m", "b"]),
        cs.merge(["m", "b"], method="linear", weights=[1, 1]), cs.transplant("b", "m"), cs.lora_merge("m", "l"),
    ]  # fmt: skip
    for plan in plans:
        assert [note for note in plan.notes if note.startswith(f"{name} is copied unchanged: it is not valid JSON")]


def test_a_transplant_into_a_configuration_says_which_file_is_broken() -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1, "num_key_value_heads": 1}
    model("m", **sizes, architectures=["LlamaForCausalLM"])
    Path("m", "tokenizer_config.json").write_text("{")
    plan = cs.transplant("m", "m/config.json")
    (note,) = [note for note in plan.notes if "is copied unchanged" in note]
    assert note.startswith("tokenizer_config.json is copied unchanged: it is not valid JSON")


@pytest.mark.costly
@pytest.mark.parametrize("broken", ["m", "b"])
def test_rows_do_not_go_by_place_beside_a_tokeniser_that_cannot_be_read(broken: str) -> None:
    for path in (model("m"), model("b", seed=1)):
        tokens = {"model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(TOKENS)}}}
        Path(path, "tokenizer.json").write_text("{broken" if path == broken else json.dumps(tokens))
    with pytest.raises(
        cs.PlanError, match=rf"^the tokeniser of ({broken}|the output) cannot be read: it is not valid JSON"
    ):
        cs.average(["m", "b"])
    assert cs.average(["m", "b"], vocab="place").notes


@pytest.mark.long
def test_what_is_said_of_the_folder_is_said_where_one_is_written(ckpt: Callable[..., Any]) -> None:
    model("m")
    rename = ("rename", "m", "--map", "model=decoder")

    def told(*arguments: str) -> str:
        done = ckpt(*arguments)
        assert done.code == 0
        return " ".join((done.out + done.err).split())

    assert "config.json is not copied" in told(*rename, "-o", "out")
    assert "config.json is not copied" in told(*rename, "-n")
    assert "modeling_x.py" in told("convert", "m", "-o", "again/")
    for options in (("-o", "out.safetensors"), ("-o", "x.pth", "-n")):
        assert not any(word in told(*rename, *options, "--force") for word in ("go along", "modeling_x.py"))


@pytest.mark.long
def test_all_that_stays_behind_is_named() -> None:
    model("m")
    for name in ("flax_model.msgpack", "LICENSE.txt", ".gitattributes", "modules.json", "a.safetensors"):
        Path("m", name).write_bytes(b"{}")
    Path("m/1_Pooling").mkdir()
    Path("m/tokenizer.json").symlink_to("nowhere")
    plan = cs.convert("m")
    left = "README.md, a.safetensors, flax_model.msgpack, modeling_x.py, modules.json, 1_Pooling/"
    left += ", tokenizer.json (a broken link)"
    assert plan.target.notes == (f"files in the folder that are not copied: {left}",)
    cs.apply(cs.convert("m"), "shards", max_shard_size="300B")
    assert cs.convert("shards").target.notes == ()
    Path("shards/config.json").write_text("{}")
    (index,) = Path("shards").glob("*.index.json")
    assert cs.convert(str(index)).target.notes == ()
    cs.apply(plan, "one")
    assert cs.convert("one/model.safetensors").target.notes == ()
    cs.apply(plan, "pieces", to="dcp")
    assert cs.convert("pieces").target.notes == ()


def test_a_folder_without_a_configuration_keeps_its_tokeniser() -> None:
    cs.apply(cs.rename(model("m"), map=["model=decoder"]), "renamed")
    cs.apply(cs.convert("renamed", dtype="bf16"), "out")
    assert beside("out") == BESIDE - {"config.json"}
    assert cs.convert("renamed/model.safetensors").target.companions == ()  # any folder may hold a file of that name


def test_quantised_weights_keep_their_configuration_as_it_is() -> None:
    from ...helpers.zoo import BY_NAME

    BY_NAME["gptq"].folder(Path("m"))
    cs.apply(cs.convert("m"), "out")
    assert config_of("out") == config_of("m")
    assert config_of("out")["quantization_config"]["bits"] == 4


def test_merged_rows_that_move_take_token_ids_along() -> None:
    model("a")
    model("b", tokens=["<unk>", *TOKENS[:3], *TOKENS[4:], "z"], eos_token_id=3, pad_token_id=1)
    weights = {"method": "linear", "weights": [0.5, 0.5]}
    cs.apply(cs.merge(["a", "b"], **weights, vocab="b/vocab.json"), "out")
    config, generation = config_of("out"), json.loads(Path("out/generation_config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"], config["pad_token_id"]) == (9, 3, 1)
    assert generation == {"eos_token_id": [3, 4], "suppress_tokens": [5, 7]}
    cs.apply(cs.merge(["a", "b"], **weights, vocab="union"), "union")
    assert (config_of("union")["eos_token_id"], config_of("union")["vocab_size"]) == (2, 9)
    Path("few.json").write_text(json.dumps({token: i for i, token in enumerate(["<pad>", "a", "b", "c"])}))
    with pytest.raises(cs.ConfigError, match=r"eos_token_id of config\.json is 2 \('</s>'\), which is not in") as error:
        cs.merge(["a", "b"], **weights, vocab="few.json")
    assert "--vocab union" in error.value.hint


def test_the_known_names_are_all_that_transformers_looks_for() -> None:
    transformers = pytest.importorskip("transformers")
    from ckptsurgeon.destinations.hf.files import TOKENIZERS

    names = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for block in re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", path.read_text(), re.S):
            names |= set(re.findall(r":\s*\"([^\"]+)\"", block))
    assert len(names) > 15
    assert names <= set(TOKENIZERS)


def test_a_web_server_lists_nothing_which_is_said(hub: Hub) -> None:
    model("m")
    address = hub.file("model.safetensors", Path("m/model.safetensors").read_bytes())
    for plan in (cs.convert(address), cs.average([address, "m"]), cs.transplant("m", address)):
        assert [note for note in plan.target.notes if "a web server does not list its folders" in note]
    cs.apply(cs.convert(address), "out")
    assert beside("out") == set()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened, in order."""
    found: list[str] = []
    real = os.open

    def counted(path: Any, *rest: Any, **more: Any) -> int:
        found.append(os.path.basename(os.fspath(path)))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", counted)
    return found


def test_a_plan_reads_nothing_that_only_goes_along(opened: list[str], ckpt: Callable[..., Any]) -> None:
    Path(model("m"), "merges.txt").write_text("a b")
    opened.clear()
    assert ckpt("convert", "m", "-n").code == 0
    assert "merges.txt" not in opened
    assert opened.count("vocab.json") == 1  # whose tokens are counted
    plan = cs.convert("m")
    cs.apply(plan, "out")
    assert opened.count("merges.txt") == 1 + 1  # and the output's own
    assert {one.sha256 for one in plan.target.companions} == {one.sha256 for one in cs.convert("m").target.companions}
    assert cs.verify("out", plan=plan).ok


def test_a_vocabulary_that_is_compared_is_read_once(opened: list[str]) -> None:
    model("a")
    model("b")
    opened.clear()
    plan = cs.average(["a", "b"])
    assert opened.count("vocab.json") == 2  # of each one
    cs.apply(plan, "out")
    assert opened.count("vocab.json") == 2 + 1 + 1  # what is copied, and the output's own


def test_a_file_that_changes_after_the_plan_ends_it() -> None:
    model("m")
    Path("p.json").write_text(json.dumps(cs.convert("m").to_json()))
    Path("m/vocab.json").write_text("{}")
    with pytest.raises(cs.PlanError, match=r"m/vocab\.json has changed since the plan"):
        cs.apply("p.json", "out")
    assert not Path("out").exists()
    cs.apply("p.json", "out.safetensors")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, ""),
        ({"vocab_size": 50}, "config.json says 50 (vocab_size), but model.embed_tokens.weight has 8 rows"),
        ({"num_hidden_layers": 5}, "config.json says 5 (num_hidden_layers), but model.layers has 3 layers"),
        ({"tie_word_embeddings": True}, "config.json says that model.embed_tokens.weight is the output layer"),
        ({"pad_token_id": 9}, "the vocabulary size is 8, but pad_token_id of config.json is 9"),
    ],
)
def test_inspect_says_where_files_contradict_the_weights(more: dict[str, Any], said: str, ckpt: Any) -> None:
    notes = cs.inspect(model("m", **more)).notes
    assert [note[: len(said)] for note in notes] == ([said] if said else [])
    assert ckpt("inspect", "m").code == 0


@pytest.mark.costly
@pytest.mark.parametrize(("field", "status"), [("pad_token_id", "FAIL"), ("eos_token_id", "WARN")])
def test_check_fails_if_the_embedding_has_no_row_for_the_padding(field: str, status: str, ckpt: Any) -> None:
    model("m", **{field: 9})
    rows = [row for row in cs.check("m").rows if any("there is no row for these ids" in one.what for one in row.found)]
    assert [row.status.name for row in rows] == [status]
    assert ("warning:" in ckpt("inspect", "m").err) == (status == "FAIL")


def test_inspect_says_which_files_beside_the_weights_cannot_be_read() -> None:
    model("m")
    Path("m/generation_config.json").write_text("{")
    Path("m/vocab.json").write_text("[]")
    notes = cs.inspect("m").notes
    assert any(note.startswith("generation_config.json: it is not valid JSON") for note in notes)
    assert "vocab.json: it is not a JSON object" in notes
    Path("m/config.json").write_text("[")
    assert any("config.json is not valid JSON" in note for note in cs.inspect("m").notes)
    os.rename("m/model.safetensors", "m/other.safetensors")
    assert not cs.inspect("m/other.safetensors").notes  # a file in a folder of whatever


def test_layers_with_a_gap_are_said() -> None:
    path = model("m")
    tensors = load_file(f"{path}/model.safetensors")
    tensors["model.layers.5.mlp.weight"] = tensors.pop("model.layers.1.mlp.weight")
    save_file(tensors, f"{path}/model.safetensors")
    said = (
        "model.layers has layers up to 5 but lacks 3 layers (the first is 1): transformers initialises what is missing"
    )
    assert said in cs.inspect("m").notes
    plan = cs.convert("m")
    assert plan.notes.count(said) == 1
    assert said not in plan.target.notes  # so that it is said of a single file, too
    assert said in cs.apply(plan, "one.safetensors").notes


def verbs_of(folder: str) -> dict[str, Callable[[], Any]]:
    """What takes the model in a folder as a source whose files the output has not, and what has them."""
    return {
        "inspect": lambda: cs.inspect(folder),
        "merge": lambda: cs.merge(["sound", folder], method="linear", weights=[1, 1]),
        "merge into it": lambda: cs.merge([folder, "sound"], method="linear", weights=[1, 1]),
        "average": lambda: cs.average(["sound", folder]),
        "transplant": lambda: cs.transplant(folder, "sound"),
        "transplant into it": lambda: cs.transplant("sound", folder),
        "lora extract": lambda: cs.lora_extract("sound", folder, rank=1),
    }


@pytest.mark.parametrize("verb", verbs_of(""))
@pytest.mark.parametrize("layers", [LAYERS, 1, 5])
def test_layers_that_the_configuration_of_any_model_has_not_are_said(layers: int, verb: str) -> None:
    model("sound"), model("m", seed=1, num_hidden_layers=layers)
    found = [note for note in verbs_of("m")[verb]().notes if "num_hidden_layers" in note and "model.layers has" in note]
    assert len(found) == (layers != LAYERS), found


@pytest.mark.parametrize("verb", verbs_of(""))
@pytest.mark.parametrize(("other", "number"), [(["x", "y", "z"], 1), ([], 0), (["vocab.txt"], 1)])
def test_two_lists_of_a_tokeniser_that_disagree_are_said(other: list[str], number: int, verb: str) -> None:
    model("sound"), model("m", seed=1)
    tokens = json.loads(Path("m/vocab.json").read_text())
    Path("m/tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": tokens, "merges": []}}))
    if other == ["vocab.txt"]:
        Path("m/vocab.txt").write_text("".join(f"x{row}\n" for row in range(len(tokens))))
    elif other:
        Path("m/vocab.json").write_text(json.dumps({f"x{row}": row for row in range(len(tokens))}))
    notes = verbs_of("m")[verb]().notes
    assert (
        len([note for note in notes if f"have different tokens in {len(tokens)} of {len(tokens)} rows" in note])
        == number
    )


@pytest.mark.long
def test_a_diff_of_folders_says_that_their_tokens_differ() -> None:
    model("a"), model("b"), model("c", tokens=TOKENS[::-1])
    assert not cs.diff("a", "b").notes
    assert cs.diff("a", "c").notes == ("the tokenisers differ: row 0 is '<pad>' in a and 'd' in c",)
    (note,) = cs.diff("a", "c/model.safetensors").notes
    assert note == "the tokenisers differ: row 0 is '<pad>' in a and 'd' in c/model.safetensors"


@pytest.mark.parametrize(("start", "said"), [(7, ""), (250, "the vocabulary size is 8, but decoder_start_token_id")])
@pytest.mark.parametrize("kind", ["encoder-decoder", "fsmt"])
def test_ids_of_an_encoder_and_a_decoder_are_those_of_the_decoder(kind: str, start: int, said: str) -> None:
    os.mkdir("m")
    save_file({"decoder.model.embed_tokens.weight": torch.ones(8, 4)}, "m/model.safetensors", {"format": "pt"})
    config = {"model_type": kind, "src_vocab_size": 300, "tgt_vocab_size": 8, "decoder_start_token_id": start}
    config = config if kind == "fsmt" else {
        "model_type": "encoder-decoder", "architectures": ["EncoderDecoderModel"], "decoder_start_token_id": start,
        "encoder": {"model_type": "bert", "vocab_size": 300, "pad_token_id": 299},
        "decoder": {"model_type": "bert", "vocab_size": 8, "pad_token_id": 0},
    }  # fmt: skip
    Path("m/config.json").write_text(json.dumps(config))
    found = [note for note in cs.inspect("m").notes if "the vocabulary size is" in note]
    assert [note[: len(said)] for note in found] == ([said] if said else [])


def test_the_settings_of_quanto_go_along_with_its_codes() -> None:
    Path("net").mkdir()
    state = {"a.weight._data": torch.ones(4, 4, dtype=torch.int8), "a.weight._scale": torch.ones(4, 1)}
    save_file({**state, "a.input_scale": torch.ones(()), "a.output_scale": torch.ones(())}, "net/model.safetensors")
    said = {"config.json": '{"model_type": "llama"}', "quanto_qmap.json": '{"a": {"weights": "qint8"}}'}
    for name, text in said.items():
        Path("net", name).write_text(text)
    cs.apply(cs.convert("net"), "out")
    assert Path("out/quanto_qmap.json").read_text() == said["quanto_qmap.json"]
