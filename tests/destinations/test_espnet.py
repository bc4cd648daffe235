"""ESPnet's ``config.yaml`` as a destination, through a stand-in made of what was recorded of the real ESPnet."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.destinations import espnet
from ckptsurgeon.destinations._document import Document
from ckptsurgeon.destinations._espnet_tasks import task_of, tasks
from fixtures.espnet_models import GOLDEN, layouts, recorded, state_of

from ..helpers.espnet_stub import write_stub

MODELS = recorded("models")
LAYOUTS = layouts()
CONFORMER = yaml.safe_load((GOLDEN / "conformer.yaml").read_text())


def forget_espnet() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "espnet2"]:
        del sys.modules[name]


class _NoESPnet:
    """Says that ESPnet is not installed, even where it is."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "espnet2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def _without_espnet(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_espnet()
    monkeypatch.setattr(sys, "meta_path", [_NoESPnet, *sys.meta_path])


@pytest.fixture
def _espnet() -> Iterator[None]:
    """Make ESPnet importable, and lay its recorded configurations into the working directory."""
    forget_espnet()
    write_stub(Path())
    for path in GOLDEN.iterdir():
        if path.suffix != ".json":
            shutil.copy(path, path.name)
    yield
    forget_espnet()


def config(change: dict[str, Any] | None = None, path: str = "config.yaml", **without: None) -> str:
    document = {**CONFORMER, **(change or {})}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump({k: v for k, v in document.items() if k not in without}))
    return path


# What was recorded when the real ESPnet was asked. These hold the recording, not our code, which the live ones below do.


@pytest.mark.parametrize("name", MODELS)
def test_the_recording_held_ours_against_the_model_that_espnet_built(name: str) -> None:
    seen = MODELS[name]["ours"]
    assert seen["same_layout"]
    assert seen["same_from_whole"]  # from the configuration that a run writes, and from the one a recipe has
    assert seen["same_by_seed"]
    assert seen["drawn"] > 5
    assert seen["fixed_and_not_equal"] == []  # frontends, statistics, norms, biases
    assert seen["given_back"]["equal"] == len(MODELS[name]["layout"])  # --init_param of our output, strictly
    assert seen["given_back"]["counts"]["initialised"] >= 1
    assert seen["notes"] == []  # built without storage
    assert seen["ran"][0].endswith("build_model from ESPnet 202511")


def test_the_recording_has_every_kind_of_vocabulary() -> None:
    seen = {key: axis for model in MODELS.values() for key, axis in model["ours"]["vocabulary"].items()}
    assert seen.keys() >= {"decoder.embed.0.weight", "decoder.embed.weight", "decoder.output.weight", "ctc.ctc_lo.bias"}
    assert seen.keys() >= {"joint_network.lin_out.weight", "lm.embed.weight", "lm.decoder.bias"}
    assert seen["encoder.conditioning_layer.weight"] == 1


def test_the_recording_has_the_layers_of_a_model_with_one_way_out_and_none_of_others() -> None:
    assert MODELS["ctc"]["ours"]["layers"] == [
        "encoder.embed", "encoder.encoders.0", "encoder.encoders.1", "encoder.after_norm", "ctc",
    ]  # fmt: skip
    assert MODELS["conformer"]["ours"]["layers"] == []


def test_the_page_has_a_row_for_every_task_with_the_models_that_were_compared() -> None:
    page = Path(__file__).parents[2].joinpath("docs/howto/espnet.md").read_text()
    for task in tasks().keys() - {"ps2st"}:
        names = [name for name, model in MODELS.items() if model["task"] == task]
        sizes = ", ".join(str(len(MODELS[name]["layout"])) for name in names)
        assert f"| {', '.join(names)} | {sizes} |" in page, task


# The seam.


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_becomes_the_destination_that_espnet_builds(name: str) -> None:
    spec = cs.load_target(f"{name}.yaml", task=MODELS[name]["task"])
    assert [[key, info.dtype, list(info.shape)] for key, info in spec.tensors.items()] == MODELS[name]["layout"]
    assert dict(spec.vocabulary) == MODELS[name]["ours"]["vocabulary"]
    assert list(spec.layers) == MODELS[name]["ours"]["layers"]
    assert list(spec.ran) == MODELS[name]["ours"]["ran"]
    assert (spec.kind, spec.name) == ("espnet", f"{name}.yaml")


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_the_seed_and_the_key_in_any_order(name: str) -> None:
    spec = cs.load_target(f"{name}.yaml", task=MODELS[name]["task"])

    def drawn(keys: list[str], seed: int) -> dict[str, bytes]:
        return {key: bytes(data) for key, data in spec.initial(keys, seed)}

    keys = [key for key, info in spec.tensors.items() if info.numel]
    first, backwards, other = drawn(keys, 1), drawn(keys[::-1], 1), drawn(keys, 2)
    assert first == backwards == {**drawn(keys[1::2], 1), **drawn(keys[::2], 1)}
    assert list(backwards) == keys[::-1]
    fixed = {key for key in keys if key.startswith("normalize.") or spec.tensors[key].dtype == "int64"}
    assert {key for key in keys if first[key] == other[key]} == fixed


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_the_statistics_that_the_configuration_names_are_the_initial_values() -> None:
    state = {k: v for k, v in state_of(LAYOUTS["conformer"]).items() if not k.startswith("normalize.")}
    torch.save(state, "src.pth")
    plan = cs.transplant("src.pth", "conformer.yaml")
    cs.apply(plan, "out.pth")
    made, stats = torch.load("out.pth"), np.load("stats.npz")
    mean = stats["sum"] / stats["count"]
    assert np.array_equal(made["normalize.mean"].numpy(), mean)
    assert np.array_equal(made["normalize.std"].numpy(), np.sqrt(stats["sum_square"] / stats["count"] - mean * mean))
    assert "stats.npz" in [file.name for file in plan.target.files]
    assert "ran espnet2.tasks.asr.ASRTask.build_model from ESPnet 202511" in plan.notes
    assert cs.verify("out.pth").ok


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_statistics_in_the_source_come_along_unless_they_are_left_out() -> None:
    torch.save(state_of(LAYOUTS["conformer"]), "src.pth")
    for exclude, mean in ((), 2.0), (["normalize"], 0.125):
        cs.apply(cs.transplant("src.pth", "conformer.yaml", exclude=exclude), "out.pth", force=True)
        assert torch.load("out.pth")["normalize.mean"][0] == mean


@pytest.mark.usefixtures("_espnet")
def test_a_plan_of_a_changed_statistics_file_is_refused() -> None:
    torch.save(state_of(LAYOUTS["conformer"]), "src.pth")
    plan = cs.Plan.from_json(cs.transplant("src.pth", "conformer.yaml", exclude=["decoder"]).to_json())
    stats = dict(np.load("stats.npz"))
    np.savez("stats.npz", count=stats["count"] + 1, sum=stats["sum"], sum_square=stats["sum_square"])
    with pytest.raises(cs.PlanError, match="stats.npz has changed since the plan"):
        cs.apply(plan, "out.pth")


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_rows_are_mapped_by_token_along_the_axes_that_espnet_s_names_declare() -> None:
    source = [*reversed(CONFORMER["token_list"][:6]), *CONFORMER["token_list"][6:]]
    Path("source.yaml").write_text(yaml.safe_dump({"token_list": source}))
    state = state_of(LAYOUTS["conformer"])
    state["ctc.ctc_lo.bias"] = torch.arange(10.0)
    torch.save(state, "src.pth")
    plan = cs.transplant("src.pth", "conformer.yaml", vocab="source.yaml:conformer.yaml")
    assert {step.key for step in plan.steps if step.kind == "mapped"} == MODELS["conformer"]["ours"][
        "vocabulary"
    ].keys()
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["ctc.ctc_lo.bias"].tolist() == [5, 4, 3, 2, 1, 0, 6, 7, 8, 9]


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_a_token_list_of_another_size_names_the_tensor(ckpt: Any) -> None:
    torch.save(state_of(LAYOUTS["conformer"]), "src.pth")
    Path("short.txt").write_text("<blank>\na\nb\n")
    done = ckpt("transplant", "src.pth", "conformer.yaml", "--vocab", "short.txt:tokens.txt", "-o", "out.pth")
    assert done.code == 4
    assert "short.txt has 3 tokens, but the tensor decoder.embed.0.weight is (10, 8) in the source" in " ".join(
        done.err.split()
    )
    assert not Path("out.pth").exists()


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_a_row_for_the_mask_that_no_list_has_is_an_error_and_never_another_order() -> None:
    """Mask-CTC's decoder has a row more than there are tokens; the stand-in's has 10 of 9."""
    torch.save(state_of(LAYOUTS["conformer"]), "src.pth")
    tokens = CONFORMER["token_list"][:9]
    config({"token_list": tokens, "decoder": "mlm"})
    Path("old.yaml").write_text(yaml.safe_dump({"token_list": tokens[::-1]}))
    with pytest.raises(
        cs.PlanError, match=r"old.yaml has 9 tokens, but the tensor decoder.embed.0.weight is \(10, 8\)"
    ) as caught:
        cs.transplant("src.pth", "config.yaml", vocab="old.yaml:config.yaml")
    assert "--reinit decoder.embed.0.weight" in caught.value.hint


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_tokens_that_look_like_numbers_are_tokens_as_espnet_reads_them() -> None:
    Path("own.yaml").write_text(Path("conformer.yaml").read_text().replace("'1e5'", "1e5"))
    assert "- 1e5" in Path("own.yaml").read_text()
    assert len(cs.load_target("own.yaml").vocabulary) == 5
    with pytest.raises(cs.ConfigError, match=r"token_list is neither .* Put quotation marks around tokens"):
        cs.load_target(config({"token_list": ["<blank>", 1]}))


# The task: read from the entries, or named by the user where they fit several.


@pytest.mark.parametrize("name", MODELS)
def test_the_recording_has_the_tasks_that_a_recipe_s_entries_fit(name: str) -> None:
    assert MODELS[name]["task"] in MODELS[name]["fits"]
    if len(MODELS[name]["fits"]) > 1:
        assert name in ("ebranchformer", "ctc", "rnn", "transducer", "spelled", "gan_tts", "gan_svs")


@pytest.mark.parametrize("task", sorted(tasks()))
def test_the_configuration_of_a_run_is_of_the_task_whose_entries_it_has(task: str) -> None:
    entries = dict.fromkeys(tasks()[task].entries)
    values: dict[str, Any]
    for values in ({**entries, "required": ["output_dir"]}, {**entries, "required": [], "gone": 1, "version": "0.9"}):
        document = Document("config.yaml", "", values, {})
        assert task_of(document, values).name == task


def test_the_classes_of_a_run_never_point_to_another_task() -> None:
    values = {**dict.fromkeys(tasks()["asr"].entries), "required": [], "decoder": "of_another_version"}
    assert task_of(Document("config.yaml", "", values, {}), values).name == "asr"


def test_the_configuration_of_an_older_run_is_of_the_task_that_it_lacks_least_of() -> None:
    newer = {"aux_ctc_tasks", "use_lang_prompt", "use_nlp_prompt", "preprocessor", "preprocessor_conf"}
    values = {**dict.fromkeys(tasks()["asr"].entries - newer), "required": ["output_dir"]}
    assert task_of(Document("config.yaml", "", values, {}), values).name == "asr"


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_a_recipe_whose_entries_fit_several_tasks_needs_the_task(ckpt: Any) -> None:
    torch.save(state_of(LAYOUTS["ctc"]), "src.pth")
    done = ckpt("transplant", "src.pth", "ctc.yaml", "-o", "out.pth")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "ctc.yaml: the entries of the file fit several tasks: asr, mt, s2t, s2t_ctc, slu, ssl. Pass" in said
    assert "--task asr, or write model: {espnet: ctc.yaml, task: asr}" in said
    assert ckpt("transplant", "src.pth", "ctc.yaml", "--task", "asr", "--exclude", "ctc", "-o", "out.pth").code == 0
    assert cs.verify("out.pth").ok
    plan = cs.Plan.from_json(cs.transplant("src.pth", "ctc.yaml", task="asr", exclude=["ctc"]).to_json())
    cs.apply(plan, "again.pth")  # which builds the destination again
    assert Path("again.pth").read_bytes()[-10:] == Path("out.pth").read_bytes()[-10:]
    assert torch.load("again.pth")["ctc.ctc_lo.bias"].equal(torch.load("out.pth")["ctc.ctc_lo.bias"])


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_a_document_may_name_the_task(ckpt: Any) -> None:
    assert ckpt("init", "ctc.yaml", "--task", "asr", "-o", "dst.yaml").code == 0
    assert yaml.safe_load(Path("dst.yaml").read_text())["model"] == {"espnet": "ctc.yaml", "task": "asr"}
    assert len(cs.load_target("dst.yaml").tensors) == len(MODELS["ctc"]["layout"])
    Path("dst.yaml").write_text("model: {espnet: ctc.yaml, task: 3}\n")
    with pytest.raises(cs.ConfigError, match="task is 3, not the name of a task"):
        cs.load_target("dst.yaml")


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize(
    ("name", "task", "why"),
    [
        ("ctc.yaml", "assr", "'assr' is not a task of ESPnet. Did you mean asr"),
        (
            "gan_codec.yaml",
            "asr",
            "the ESPnet task asr has no entry codec, codec_conf. codec is an entry of these tasks: gan_codec",
        ),
        (
            "dst.yaml",
            "asr",
            "dst.yaml: only configurations of ESPnet have a task, and this file is not an ESPnet configuration",
        ),
        ("src.pth", "asr", "only configurations of ESPnet have a task, and src.pth is not an ESPnet configuration"),
    ],
)
def test_a_task_that_does_not_fit_is_an_error(name: str, task: str, why: str) -> None:
    Path("dst.yaml").write_text("model: {tensors: {a: {shape: [2]}}}\n")
    torch.save(state_of(LAYOUTS["toy"]), "src.pth")
    with pytest.raises(cs.ConfigError, match=why):
        cs.load_target(name, task=task)
    with pytest.raises(cs.ConfigError, match={"src.pth": "task is only", "dst.yaml": "already"}.get(name, why)):
        cs.init_config(name, task=task)


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_values_pass_through_the_types_of_espnet_s_arguments() -> None:
    spec = cs.load_target("spelled.yaml", task="asr")  # init: Xavier_Uniform, normalize: none, input_size: none
    assert [[key, info.dtype, list(info.shape)] for key, info in spec.tensors.items()] == MODELS["spelled"]["layout"]


@pytest.mark.usefixtures("_espnet")
def test_the_recipe_that_a_run_was_made_of_is_not_read_again() -> None:
    spec = cs.load_target(config({"required": ["output_dir"], "config": "conf/gone.yaml"}))
    assert len(spec.tensors) == len(MODELS["conformer"]["layout"])
    assert spec.notes == ()


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_match_takes_the_task_of_a_recipe_that_fits_several(ckpt: Any) -> None:
    torch.save(state_of(LAYOUTS["ctc"]), "src.pth")
    assert "--task asr" in ckpt("match", "src.pth", "ctc.yaml").err
    assert ckpt("match", "src.pth", "ctc.yaml", "--task", "asr").code == 0
    assert cs.match("src.pth", "ctc.yaml", task="asr").complete


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_the_configuration_of_a_run_may_have_arguments_that_this_espnet_lacks() -> None:
    spec = cs.load_target(config({"required": ["output_dir"], "version": "0.9", "gone": 1, "gone_conf": {}}))
    assert spec.notes == ("the installed ESPnet has no argument gone: ignored",)


# Where ESPnet's paths lead.


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize("config_at", ["config.yaml", "exp/asr_train/config.yaml"])
def test_paths_are_those_of_the_working_directory_as_in_espnet(config_at: str) -> None:
    Path("data").mkdir()
    shutil.move("tokens.txt", "data/tokens.txt")
    spec = cs.load_target(config({"token_list": "data/tokens.txt"}, config_at))
    assert spec.files == ("data/tokens.txt", "stats.npz")
    assert spec.notes == ()


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_paths_are_found_from_the_configuration_s_folder_and_above_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config({"token_list": "tokens.txt"}, "recipe/exp/asr_train/config.yaml")
    shutil.move("tokens.txt", "recipe/exp/asr_train/tokens.txt")
    shutil.move("stats.npz", "recipe/stats.npz")
    spec = cs.load_target("recipe/exp/asr_train/config.yaml")
    assert spec.files == ("recipe/exp/asr_train/tokens.txt", "recipe/stats.npz")
    assert spec.notes == (
        "the file tokens.txt (field token_list of config.yaml) was found at recipe/exp/asr_train/tokens.txt",
        "the file stats.npz (field stats_file of config.yaml) was found at recipe/stats.npz",
    )


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"token_list": "data/tokens.txt"},
            r"the file data/tokens.txt \(field token_list\) does not exist, neither relative to the working",
        ),
        ({"normalize_conf": {"stats_file": "exp/s.npz"}}, r"the file exp/s.npz \(field stats_file\) does not exist"),
        ({"token_list": None}, "the file has no token_list. Use the config.yaml that a run wrote"),
        ({"token_list": {"a": 1}}, "token_list is neither a list of strings nor a file"),
        ({"src_token_list": []}, "fit no task of ESPnet: asr has no src_token_list; st has no use_lang_prompt"),
        ({"tts": "fastspeech2"}, "fit no task of ESPnet: asr has no tts; "),
        ({"decoder": "nosuch", "input_size": 3}, "fit no task of ESPnet: asr has no decoder: nosuch"),
        ({"model_conf": {"ctc_wait": 0.3}}, "fit no task of ESPnet: asr has no model_conf: ctc_wait"),
        ({"model_conf": 3, "tts": "x"}, "fit no task of ESPnet: asr has no tts; "),
        ({1: 2}, "the name of an entry is 1, not a string. Write it in quotes"),
        ({"encoder_cnf": {}}, "ESPnet has no argument encoder_cnf. Did you mean encoder_conf"),
    ],
)
def test_what_cannot_be_built_says_why_and_writes_nothing(change: dict[str, Any], why: str, ckpt: Any) -> None:
    config(change)
    torch.save(state_of(LAYOUTS["conformer"]), "src.pth")
    with pytest.raises(cs.ConfigError, match=why):
        cs.load_target("config.yaml")
    assert ckpt("transplant", "src.pth", "config.yaml", "-o", "out.pth").code == 2
    assert not Path("out.pth").exists()


@pytest.mark.usefixtures("_without_espnet")
@pytest.mark.parametrize("change", [{"token_list": None}, {"normalize_conf": {"stats_file": "exp/s.npz"}}])
def test_without_espnet_the_package_is_named_before_what_the_configuration_lacks(change: dict[str, Any]) -> None:
    config(change)
    with pytest.raises(cs.ConfigError, match="the package espnet is not installed"):
        cs.load_target("config.yaml")


@pytest.mark.usefixtures("_without_espnet")
def test_without_espnet_the_package_and_another_way_are_named(ckpt: Any) -> None:
    config({"token_list": ["<blank>"], "normalize_conf": {}})
    torch.save(state_of(LAYOUTS["conformer"]), "src.pth")
    done = ckpt("transplant", "src.pth", "config.yaml")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert (
        "config.yaml: the model is built by ESPnet, and the package espnet is not installed. Run pip install espnet"
        in said
    )
    assert "ckpt init CHECKPOINT" in said
    assert ckpt("init", "config.yaml", "-o", "dst.yaml").code == 2
    assert not Path("dst.yaml").exists()


def test_an_espnet_that_lacks_something_says_what() -> None:
    Path("espnet2/tasks").mkdir(parents=True)
    Path("espnet2/tasks/asr.py").write_text("import a_package_nobody_has\n")
    forget_espnet()
    with pytest.raises(cs.ConfigError, match=r"ESPnet needs the package a_package_nobody_has. pip install"):
        cs.load_target(config({"normalize_conf": {}}))
    Path("espnet2/tasks/asr.py").write_text("1 / 0\n")
    forget_espnet()
    with pytest.raises(cs.ConfigError, match="importing espnet2.tasks.asr failed: ZeroDivisionError"):
        cs.load_target("config.yaml")
    with pytest.raises(cs.ConfigError, match="has no module espnet2.tasks.s2t. pip install -U espnet"):
        cs.load_target(config({"normalize_conf": {}, "preprocessor": "s2t"}, use_lang_prompt=None))
    forget_espnet()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("encoder: {hidden: 3}\nheads: 4\n", "has no `model:` section"),  # another toolkit's
        ("encoder: {hidden: 3}\ndecoder_conf: {}\n", "has no `model:` section"),
        ("token_list: [a, b]\n", "has no `model:` section"),
        ("model_type: wav2vec2\nencoder: a\nencoder_conf: {}\n", ""),  # transformers'
        ("modules: !new:torch.nn.Linear\n", ""),  # SpeechBrain's
        ("encoder: conformer\nencoder_conf: {a: [}\n", "line 2"),
        ("encoder: a\nencoder: b\nencoder_conf: {}\n", "'encoder' occurs twice"),
    ],
)
def test_what_is_not_espnet_s_is_left_to_others_or_refused(text: str, why: str) -> None:
    Path("config.yaml").write_text(text)
    with pytest.raises(cs.ConfigError) as caught:
        cs.load_target("config.yaml")
    assert why in str(caught.value)
    assert "espnet" not in str(caught.value).lower()


# Our document that names it.


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_init_writes_a_document_that_names_the_configuration_and_what_is_frozen(ckpt: Any) -> None:
    config(path="exp/config.yaml")
    assert ckpt("init", "exp/config.yaml", "-o", "dst.yaml").code == 0
    text = Path("dst.yaml").read_text()
    assert text.startswith("# ran espnet2.tasks.asr.ASRTask.build_model from ESPnet 202511\n")
    assert yaml.safe_load(text) == {
        "model": {"espnet": "exp/config.yaml"},
        "train": {
            "task": "espnet",
            "features": {"kind": "waves"},
            "data": {"train": "train.csv", "dev": "dev.csv", "tokens": "tokens.txt"},
            "freeze": ["encoder.embed", "normalize"],
        },
    }
    assert "# train.data has paths of files that you must provide" in text
    spec = cs.load_target("dst.yaml")
    assert [[k, i.dtype, list(i.shape)] for k, i in spec.tensors.items()] == MODELS["conformer"]["layout"]
    assert (spec.name, spec.config, spec.files) == ("dst.yaml", "dst.yaml", ("exp/config.yaml", "stats.npz"))
    said = ckpt("init", "exp/config.yaml", "-o", "exp/dst.json").err
    assert "ran espnet2.tasks.asr.ASRTask.build_model" in said
    assert "train.data has paths of files that you must provide" in said
    assert cs.load_target("exp/dst.json").files[0] == "exp/config.yaml"
    assert yaml.safe_load(cs.init_config("exp/config.yaml"))["model"] == {"espnet": "exp/config.yaml"}


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_what_no_task_of_ours_trains_gets_a_comment_instead_of_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espnet, "TRAINED", ())
    text = cs.init_config(config())
    why = "ckpt train has no task for this model, so the section train: is left out"
    assert f"# {why}; the toolkit's configuration freezes encoder.embed, normalize\n" in text
    assert yaml.safe_load(text) == {"model": {"espnet": "config.yaml"}}


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_a_configuration_that_freezes_nothing_gets_no_section() -> None:
    assert "train" not in yaml.safe_load(cs.init_config("ebranchformer.yaml", task="asr"))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("encodr", r"freeze_param encodr matches none of the 124 destination keys. Did you mean encoder \(88 keys\)"),
        ("encoder.encoder", "freeze_param encoder.encoder matches none"),  # dot-bounded, as in ESPnet
        ("embed", r"Did you mean \*\*.embed"),
        ("encoder.", "Write freeze_param encoder: a name has no dot at its ends"),
    ],
)
def test_what_is_frozen_must_be_there(name: str, why: str) -> None:
    config({"freeze_param": [name]})
    with pytest.raises(cs.PatternError, match=why):
        cs.init_config("config.yaml", output="dst.yaml")
    assert not Path("dst.yaml").exists()


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize("names", ["encoder", [3], [""]])
def test_what_is_frozen_is_a_list_of_names(names: object) -> None:
    with pytest.raises(cs.ConfigError, match="freeze_param is .* not a list of names"):
        cs.init_config(config({"freeze_param": names}))


@pytest.mark.costly
@pytest.mark.usefixtures("_espnet")
@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("{espnet: nothing.yaml}", "nothing.yaml cannot be read"),
        ("{espnet: 3}", "espnet is 3, not a file name"),
        ("{espnet: other.yaml}", "other.yaml: the file is not a configuration of ESPnet"),
        ("{espnet: broken.yaml}", "broken.yaml, line 2"),
        ("{espnet: conformer.yaml, vocab: 3}", "no field 'vocab'"),
    ],
)
def test_a_document_that_names_something_else_says_so(model: str, why: str) -> None:
    Path("other.yaml").write_text("a: 1\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("dst.yaml").write_text(f"model: {model}\n")
    with pytest.raises(cs.ConfigError, match=why):
        cs.load_target("dst.yaml")


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_init_refuses_what_it_cannot_name() -> None:
    with pytest.raises(cs.ConfigError, match="root is only for checkpoints"):
        cs.init_config("conformer.yaml", root="model")
    Path("ours.yaml").write_text("model: {tensors: {a: {shape: [2]}}}\n")
    with pytest.raises(cs.ConfigError, match="ours.yaml: the file is already a destination"):
        cs.init_config("ours.yaml")
    with pytest.raises(cs.OutputError, match="conformer.yaml"):
        cs.init_config("conformer.yaml", output="conformer.yaml", force=True)


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_a_statistics_file_that_nothing_reads_may_be_gone() -> None:
    Path("stats.npz").unlink()
    spec = cs.load_target(config({"normalize": None, "normalize_conf": {"stats_file": "stats.npz"}}))
    assert spec.files == ()


@pytest.mark.long
@pytest.mark.usefixtures("_espnet")
def test_adapters_are_left_out_and_said() -> None:
    spec = cs.load_target(config({"use_adapter": True, "adapter": "lora"}))
    assert spec.notes == (
        "the model is built without its adapters (use_adapter): ESPnet adds them after it has loaded the weights of "
        "init_param",
    )
