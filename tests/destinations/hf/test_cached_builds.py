"""What a configuration of transformers builds is kept: plans and outputs are the same, and nothing is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.destinations import transformers as kind
from ckptsurgeon.destinations.hf import cached_build, stock_code
from ckptsurgeon.destinations.torch_module.meta import build_on_meta
from ckptsurgeon.planning.target import Draw

from ...helpers.nursery import run_apart
from ...helpers.transformers_models import (
    BERT,
    CLIP,
    ESM,
    GPT2,
    MIXTRAL,
    MOBILEBERT,
    PARAKEET,
    T5,
    WAV2VEC2,
    WHISPER,
    saved,
    write_config,
)

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
    "intermediate_size": 24, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "BertForSequenceClassification": BERT,
    "BertForMaskedLM": BERT,
    "Wav2Vec2ForCTC": WAV2VEC2,
    "WhisperForConditionalGeneration": WHISPER,
    "GPT2LMHeadModel": GPT2,
    "T5ForConditionalGeneration": T5,
    "MixtralForCausalLM": MIXTRAL,
    "LlamaForCausalLM": LLAMA,
    "EsmForMaskedLM": ESM,
    "MobileBertForMaskedLM": MOBILEBERT,
    "ParakeetForCTC": PARAKEET,
    "CLIPModel": CLIP,
}
VERSIONS = {"torch": "2", "transformers": "5"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache folder of this test; versions are as in a process that has not imported transformers."""
    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS", raising=False)
    monkeypatch.setattr(cached_build, "versions", lambda: VERSIONS)


@pytest.fixture
def never_built(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every later build an error."""

    def refuses(*args: object) -> None:
        raise AssertionError("built again")

    return lambda: monkeypatch.setattr(kind, "_built", refuses)


def entries() -> list[Path]:
    return sorted(Path("cache/builds").glob("*.json"))


def plan_text(source: str, destination: str, **options: Any) -> str:
    return json.dumps(cs.transplant(source, destination, **options).to_json())


def source_of(destination: str) -> str:
    """Write a checkpoint that has all tensors of a destination."""
    import torch
    from safetensors.torch import save_file

    tensors = cs.load_target(destination).tensors
    save_file(
        {key: torch.ones(i.shape, dtype=getattr(torch, i.dtype)) for key, i in tensors.items()}, "src.safetensors"
    )
    return "src.safetensors"


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("architecture", MODELS)
def test_plans_and_outputs_are_the_same_byte_for_byte(
    architecture: str, monkeypatch: pytest.MonkeyPatch, never_built: Callable[[], None]
) -> None:
    config = str(write_config("dst/config.json", MODELS[architecture], architecture))
    monkeypatch.setenv("CKPTSURGEON_NO_BUILDS", "1")
    source = source_of(config)
    without = plan_text(source, config)
    cs.apply(cs.transplant(source, config), "without")
    assert not entries()
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS")
    assert plan_text(source, config) == without
    assert len(entries()) >= 2
    never_built()
    assert plan_text(source, config) == without
    cs.apply(cs.transplant(source, config), "with")
    names = sorted(os.listdir("with"))
    assert names == sorted(os.listdir("without"))
    assert all(Path("with", name).read_bytes() == Path("without", name).read_bytes() for name in names)


@pytest.mark.long
def test_conversions_of_an_older_layout_are_kept(
    monkeypatch: pytest.MonkeyPatch, never_built: Callable[[], None]
) -> None:
    saved("src", MIXTRAL, "MixtralForCausalLM")
    config = str(write_config("dst/config.json", MIXTRAL, "MixtralForCausalLM"))
    with monkeypatch.context() as patched:
        patched.setenv("CKPTSURGEON_NO_BUILDS", "1")
        without = plan_text("src", config)
    assert '"stack"' in without
    assert plan_text("src", config) == without
    never_built()
    assert plan_text("src", config) == without


@pytest.mark.long
def test_initial_values_are_drawn_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write_config("dst/config.json", BERT, "BertForMaskedLM"))
    source = source_of(config)
    assert entries()
    drawn = {"reinit": ["**.query.weight"], "seed": 3}
    cs.apply(cs.transplant(source, config, **drawn), "with.safetensors")
    monkeypatch.setenv("CKPTSURGEON_NO_BUILDS", "1")
    cs.apply(cs.transplant(source, config, **drawn), "without.safetensors")
    assert Path("with.safetensors").read_bytes() == Path("without.safetensors").read_bytes()


@pytest.mark.costly
@pytest.mark.parametrize("architecture", MODELS)
def test_values_that_one_operation_fills_are_drawn_without_the_model(
    architecture: str, monkeypatch: pytest.MonkeyPatch, never_built: Callable[[], None]
) -> None:
    config = str(write_config("dst/config.json", MODELS[architecture], architecture))
    monkeypatch.setenv("CKPTSURGEON_NO_BUILDS", "1")
    built = cs.load_target(config)
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS")
    cs.load_target(config)
    never_built()
    kept = cs.load_target(config)
    assert len(kept.draws) > len(kept.tensors) * 3 // 4
    assert kept.draws == built.draws
    assert kept.pieces is not None
    for (key, values), (_, own) in zip(built.initial(kept.draws, 3), kept.initial(kept.draws, 3), strict=True):
        assert bytes(values) == bytes(own) == b"".join(kept.pieces(key, 3)), key


def test_numbers_that_are_filled_in_are_kept_exactly() -> None:
    config = str(write_config("dst/config.json", LLAMA, "LlamaForCausalLM"))
    spec = cs.load_target(config)
    numbers = [("fill_", ((1 << 53) + 1,)), ("fill_", (0.0,)), ("fill_", (-0.0,))]
    draws = {key: Draw(*one) for key, one in zip(spec.tensors, numbers, strict=False)}
    found = cached_build.draws_of(cached_build.kept_draws(replace(spec, draws=draws)), spec.tensors)
    assert repr(found) == repr(draws)


def test_other_values_are_drawn_by_the_model() -> None:
    config = str(write_config("dst/config.json", BERT, "BertForMaskedLM"))
    cs.load_target(config)
    kept = cs.load_target(config)
    (key,) = (key for key in kept.tensors if key.endswith("word_embeddings.weight"))  # the row of padding is 0
    assert key not in kept.draws
    ((_, values),) = kept.initial([key], 0)
    assert len(values) == kept.tensors[key].nbytes


def test_the_axes_of_the_vocabulary_and_the_live_model_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write_config("dst/config.json", GPT2, "GPT2LMHeadModel"))
    first, again = dict(cs.load_target(config).vocabulary), cs.load_target(config)
    assert again.build is not None
    assert type(again.build()).__name__ == "GPT2LMHeadModel"
    with monkeypatch.context() as patched:
        patched.setattr(kind, "_built", lambda *args: pytest.fail("built again"))
        assert dict(cs.load_target(config).vocabulary) == first != {}


def test_building_the_live_model_stores_nothing() -> None:
    """Without memory, its parameters may be no longer tied, which an entry must not say."""
    config = str(write_config("dst/config.json", GPT2, "GPT2LMHeadModel"))
    ties = cs.load_target(config).ties
    assert ties
    again = cs.load_target(config)
    assert again.build is not None
    build_on_meta(again.build)  # type: ignore[arg-type]
    assert cs.load_target(config).ties == ties


def test_a_yaml_with_overrides_is_kept_apart(never_built: Callable[[], None]) -> None:
    write_config("base/config.json", BERT, "BertForSequenceClassification")
    texts = {}
    for labels in (3, 5):
        Path(f"{labels}.yaml").write_text(f"model: {{transformers: base, num_labels: {labels}}}\n")
        texts[labels] = companion(f"{labels}.yaml")
    never_built()
    assert {labels: companion(f"{labels}.yaml") for labels in (3, 5)} == texts
    assert len(json.loads(texts[5])["id2label"]) == 5


def companion(destination: str) -> str:
    return next(one.text for one in cs.load_target(destination).companions if one.name == "config.json")


def test_files_beside_the_configuration_are_those_that_lie_there_now(never_built: Callable[[], None]) -> None:
    config = str(write_config("dst/config.json", BERT))
    cs.load_target(config)
    Path("dst/vocab.txt").write_text("a\nb\n")
    never_built()
    target = cs.load_target(config)
    assert [one.name for one in target.companions] == ["config.json", "vocab.txt"]
    assert "dst/vocab.txt" in target.files


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"hidden_size": 32}, {}),
        ({}, {"architecture": "BertForMaskedLM"}),
        ({"_name_or_path": "elsewhere"}, {}),
    ],
)
def test_another_configuration_is_another_entry(fields: dict[str, Any], more: dict[str, str]) -> None:
    cs.load_target(str(write_config("dst/config.json", BERT, "BertForSequenceClassification")))
    before = entries()
    cs.load_target(str(write_config("dst/config.json", {**BERT, **fields}, **{"architecture": "BertModel", **more})))
    assert len(entries()) == len(before) + 1


@pytest.mark.costly
@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_another_version_is_another_entry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write_config("dst/config.json", BERT))
    cs.load_target(config)
    monkeypatch.setattr(cached_build, "versions", lambda: {**VERSIONS, name: "other"})
    cs.load_target(config)
    assert len(entries()) == 2


@pytest.mark.costly
@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.pop("tensors"),
        lambda kept: kept["tensors"].append(["x"]),
        lambda kept: kept["drawn"].pop(),
        lambda kept: kept["draws"][0].__setitem__(0, "share_memory_"),
        lambda kept: kept["drawn"].__setitem__(0, 99),
        lambda kept: kept["draws"][0].__setitem__(1, ["0.5"]),
    ],
)
def test_an_entry_of_another_form_is_built_and_written_again(change: Callable[[Any], None]) -> None:
    config = str(write_config("dst/config.json", BERT))
    tensors = cs.load_target(config).tensors
    (path,) = entries()
    entry = json.loads(path.read_text())
    change(entry["document"])
    cached_build.keep_document(path.stem, entry["document"])
    assert cs.load_target(config).tensors == tensors
    assert cs.load_target(config).tensors == tensors
    assert json.loads(path.read_text())["document"] != entry["document"]


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_build_that_could_not_be_written_is_not_called_kept(
    is_writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_writable:
        Path("cache").write_text("")
    real, said = cached_build.keep_spec, []

    def keep(*args: Any) -> bool:
        said.append(real(*args))
        return said[-1]

    monkeypatch.setattr(cached_build, "keep_spec", keep)
    cs.load_target(str(write_config("dst/config.json", BERT)))
    assert said == [is_writable]


def test_no_text_of_the_user_is_kept() -> None:
    secret = {"_name_or_path": "/home/of/mine", "secret_of": "abc-123", "id2label": {"0": "my label", "1": "yours"}}
    write_config("private folder/config.json", {**BERT, **secret}, "BertForSequenceClassification")
    cs.load_target("private folder/config.json")
    assert len(entries()) == 1
    text = entries()[0].read_text()
    assert not [one for one in ("home", "mine", "secret", "abc-123", "label", "yours", "private") if one in text]


def test_a_text_of_the_user_that_the_library_moves_is_not_kept() -> None:
    write_config("base/config.json", BERT, "BertForSequenceClassification")
    Path("dst.yaml").write_text("model: {transformers: base, id2label: {'0': my label, '1': yours}}\n")
    assert "label2id" in companion("dst.yaml")
    assert not entries()


@pytest.mark.parametrize("kept", [["my_new_file.txt"], []])
def test_a_model_that_reads_a_file_is_not_kept(kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.destinations.hf import model

    config = str(write_config("dst/config.json", BERT))
    for name in kept:
        Path(name).write_text("")
    before = model.construct

    def reads(*args: Any) -> Any:
        for name in kept:
            Path(name).read_text()
        return before(*args)

    monkeypatch.setattr(model, "construct", reads)
    cs.load_target(config)
    assert len(entries()) == (not kept)


def test_models_with_classes_of_other_packages_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.models.bert import modeling_bert

    class Other(torch.nn.LayerNorm):
        pass

    monkeypatch.setattr(modeling_bert.nn, "LayerNorm", Other)
    cs.load_target(str(write_config("dst/config.json", BERT)))
    assert not entries()


def test_a_new_vocabulary_and_fewer_rows_are_not_kept() -> None:
    write_config("base/config.json", BERT, "BertForMaskedLM")
    Path("dst.yaml").write_text("model: {transformers: base, vocab_size: 20}\n")
    cs.load_target("dst.yaml")
    assert not entries()


def test_a_process_that_has_imported_transformers_has_no_versions() -> None:
    import transformers  # noqa: F401

    assert stock_code.versions() == {}


@pytest.mark.parametrize("name", ["torch", "transformers", "safetensors"])
def test_versions_are_those_of_the_metadata(name: str) -> None:
    assert stock_code._installed(name).split()[0] == f"{name}-{version(name)}.dist-info"


def test_a_package_that_is_not_where_pip_installs_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_package").mkdir()
    Path("my_package/__init__.py").write_text("")
    monkeypatch.syspath_prepend(os.getcwd())
    assert stock_code._installed("my_package") == stock_code._installed("no_such_package") == ""


def test_two_installs_of_one_version_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of a main branch have one version; a package without a RECORD cannot be told from another."""
    for folder in ("my_package", "my_package-5.24.0.dev0.dist-info"):
        Path(folder).mkdir()
    Path("my_package/__init__.py").write_text("")
    monkeypatch.syspath_prepend(os.getcwd())
    assert stock_code._installed("my_package") == ""
    found = set()
    for digest in ("one", "other", "one"):
        Path("my_package-5.24.0.dev0.dist-info/RECORD").write_text(f"my_package/__init__.py,sha256={digest},0\n")
        found.add(stock_code._installed("my_package"))
    assert len(found) == 2


CODE = """
import sys
sys.path = [path for path in sys.path if path]
from ckptsurgeon.cli import main
code = main(sys.argv[1:])
print([name for name in ("torch", "transformers") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.long
def test_the_second_command_imports_neither_torch_nor_transformers() -> None:
    """And the first one imports the library, for which it does not take what stands in the working directory."""
    Path("transformers.py").write_text("raise SystemExit('it ran')")
    config = str(write_config("dst/config.json", GPT2, "GPT2LMHeadModel"))
    source = source_of(config)

    def run(*args: str) -> tuple[str, str]:
        done = run_apart(CODE, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.splitlines()[-1]

    command = [sys.executable, "-P", "-c", CODE, "transplant", source, config, "-n", "--json"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    planned = first.stdout
    assert first.stderr.splitlines()[-1] == "['torch', 'transformers']"
    assert json.loads(planned)["counts"] == {"copied": len(cs.load_target(config).tensors)}  # stdout has nothing else
    again, imported = run("transplant", source, config, "-n", "--json")
    assert (again, imported) == (planned, "[]")
    assert run("transplant", source, config, "-o", "out")[1] == "[]"
    assert run("match", source, config)[1] == "[]"
    answer, imported = run("fits", source, config)
    assert (answer.startswith("fits: all "), imported) == (True, "[]")
