"""The tokeniser and feature extractor that a CTC model of waves gets, so that transformers can use it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

import ckptsurgeon as cs

from ...helpers.examples import ROOT
from ...helpers.transformers_models import WAV2VEC2, write_config

TOKENS = ["a", "b", "<pad>", "|", "c"]
TRAIN = {"task": "wav2vec2_ctc", "data": {"train": "t.csv", "tokens": "tokens.txt"}, "features": {"kind": "waves"}}


def destination(tokens: list[str] = TOKENS, train: dict[str, Any] | None = None, **fields: Any) -> cs.TargetSpec:
    write_config("config.json", WAV2VEC2, "Wav2Vec2ForCTC", pad_token_id=0)
    Path("tokens.txt").write_text("\n".join(tokens) + "\n")
    model = {"transformers": "config.json", "vocab_size": len(tokens), **fields}
    Path("dst.yaml").write_text(yaml.safe_dump({"model": model, "train": train or TRAIN}))
    return cs.load_target("dst.yaml")


def names(spec: cs.TargetSpec) -> list[str]:
    return [one.name for one in spec.companions]


def content(spec: cs.TargetSpec, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(one.text for one in spec.companions if one.name == name))
    return found


@pytest.mark.long
def test_a_folder_of_a_ctc_model_is_used_by_transformers(ckpt: Any) -> None:
    from transformers import AutoProcessor, pipeline

    spec = destination()
    assert "pad_token_id becomes 2, the id of the CTC blank <pad>" in spec.notes
    assert content(spec, "config.json")["pad_token_id"] == 2
    cs.apply(cs.transplant({"lm_head.bias": np.zeros(5, np.float32)}, "dst.yaml"), "out/")
    assert not cs.inspect("out").notes
    processor = AutoProcessor.from_pretrained("out")
    assert len(processor.tokenizer) == 5
    assert processor.tokenizer.decode([0, 0, 2, 0, 3, 1, 4, 2]) == "aa bc"
    assert processor.tokenizer("ab c").input_ids == [0, 1, 3, 4]
    assert processor.feature_extractor.do_normalize
    assert not processor.feature_extractor.return_attention_mask  # of models with a group norm
    spoken = pipeline("automatic-speech-recognition", model="out")
    assert isinstance(
        spoken({"raw": np.random.default_rng(0).normal(size=16_000), "sampling_rate": 16_000})["text"], str
    )


def test_a_tokeniser_that_is_made_for_a_new_alphabet_is_not_said_to_be_missing() -> None:
    destination(train={**TRAIN, "data": {"train": "t.csv", "tokens": "new.txt"}})
    Path("tokens.txt").rename("new.txt")
    Path("old.txt").write_text("a\nb\n<pad>\n|\n")
    Path("alphabet.txt").write_text("<pad>\nx\ny\n")  # other tokens, of which new.txt has one
    plan = cs.transplant({"lm_head.bias": np.zeros(4, np.float32)}, "dst.yaml", vocab="old.txt:new.txt")
    assert {"vocab.json", "tokenizer_config.json"} <= {one.name for one in plan.target.companions}
    assert not [note for note in plan.notes if note.startswith("no tokeniser")]
    assert "files of the old tokeniser that are left out: alphabet.txt" in plan.notes
    config = next(one.text for one in plan.target.companions if one.name == "config.json")
    assert json.loads(config)["pad_token_id"] == 2  # the blank's new id is not taken for an old one


@pytest.mark.long
def test_the_page_on_fine_tuning_reads_a_letter_that_is_said_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CTC says a blank between the two, which must still be there when equal letters are merged."""
    import transformers

    page = (ROOT / "docs/howto/finetune.md").read_text()
    (program,) = re.findall(r"```python\n(import soundfile\n.*?)```", page, re.S)
    destination()
    cs.apply(cs.transplant({"lm_head.bias": np.zeros(5, np.float32)}, "dst.yaml"), "tuned/")
    said = torch.nn.functional.one_hot(torch.tensor([[0, 0, 2, 0, 3, 1]]), 5)
    model = SimpleNamespace(from_pretrained=lambda path: lambda **inputs: SimpleNamespace(logits=said))
    monkeypatch.setattr(transformers, "Wav2Vec2ForCTC", model)
    Path("demo/en/wav").mkdir(parents=True)
    soundfile.write("demo/en/wav/dev-00000.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    Path("page.py").write_text(program)
    runpy.run_path("page.py")
    assert capsys.readouterr().out == "['aa b']\n"


@pytest.mark.long
def test_a_pretrained_model_has_a_feature_extractor_only() -> None:
    train = {**TRAIN, "task": "wav2vec2_pretrain", "features": {"kind": "waves", "rate": 8000}}
    spec = destination(train=train, architecture="Wav2Vec2ForPreTraining", feat_extract_norm="layer")
    assert names(spec) == ["config.json", "preprocessor_config.json"]
    made = content(spec, "preprocessor_config.json")
    assert (made["sampling_rate"], made["return_attention_mask"]) == (8000, True)


@pytest.mark.costly
@pytest.mark.parametrize(
    "train",
    [None, {"task": "mine.py:Task"}, {**TRAIN, "features": {"kind": "log_mel"}}, {**TRAIN, "features": 3}, "text"],
)
def test_nothing_is_made_for_what_takes_no_waves(train: Any) -> None:
    spec = destination(train=train or {"task": "x"})
    assert names(spec) == ["config.json"]
    assert content(spec, "config.json")["pad_token_id"] == 0


def test_files_beside_the_configuration_are_kept() -> None:
    Path("vocab.json").write_text(json.dumps({token: number for number, token in enumerate(TOKENS)}))
    Path("preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    spec = destination()
    assert sorted(names(spec)) == ["config.json", "preprocessor_config.json", "vocab.json"]
    assert all(one.path for one in spec.companions if one.name != "config.json")


def test_a_padding_that_is_asked_for_stays() -> None:
    assert content(destination(pad_token_id=1), "config.json")["pad_token_id"] == 1


@pytest.mark.costly
@pytest.mark.parametrize(
    ("tokens", "fields", "why"),
    [
        (["a", "b", "c"], {}, "has no blank"),
        (TOKENS, {"vocab_size": 9}, "has 5 tokens, but the model has 9 rows"),
        (["<pad>", "▁the", "a"], {}, "consists of subword pieces, but Wav2Vec2CTCTokenizer needs single letters"),
    ],
)
def test_tokens_that_its_tokeniser_cannot_have_are_said(tokens: list[str], fields: dict[str, Any], why: str) -> None:
    spec = destination(tokens, **fields)
    assert names(spec) == ["config.json", "preprocessor_config.json"]
    assert f"no tokeniser is written for transformers: tokens.txt {why}" in spec.notes


def test_tokens_that_are_not_there_stop_no_transplant() -> None:
    train = {**TRAIN, "data": {"train": "t.csv", "tokens": "other.txt"}}
    spec = destination(train=train)
    assert any(
        note.startswith("no tokeniser is written for transformers: ") and "other.txt" in note for note in spec.notes
    )


def test_a_tokeniser_of_other_tokens_is_replaced_by_one_of_those_that_are_trained() -> None:
    Path("vocab.json").write_text(json.dumps({token: number for number, token in enumerate([*TOKENS, "x", "y"])}))
    Path("tokenizer_config.json").write_text('{"unk_token": "x"}')
    Path("special_tokens_map.json").write_text('{"unk_token": "x"}')
    spec = destination()
    assert sorted(names(spec)) == ["config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"]
    assert content(spec, "vocab.json") == {token: number for number, token in enumerate(TOKENS)}
    assert content(spec, "tokenizer_config.json")["pad_token"] == "<pad>"
    (note,) = [note for note in spec.notes if "vocab.json in the folder" in note]
    assert f"has 'x' at row {len(TOKENS)}, and tokens.txt has no such row" in note
    assert note.endswith("instead, a tokeniser for tokens.txt is written")


@pytest.mark.long
def test_another_vocabulary_beside_the_configuration_is_said() -> None:
    mine = [*TOKENS[:-1], "x"] if TOKENS[-1] != "x" else [*TOKENS[:-1], "y"]
    Path("vocab.json").write_text(json.dumps({token: number for number, token in enumerate(mine)}))
    (note,) = [note for note in destination().notes if "vocab.json in the folder of the configuration" in note]
    assert f"has '{mine[-1]}' at row {len(mine) - 1}, and tokens.txt has '{TOKENS[-1]}'" in note
    Path("vocab.json").write_text(json.dumps({token: number for number, token in enumerate(TOKENS)}))
    assert not any("vocab.json in the folder" in note for note in destination().notes)
