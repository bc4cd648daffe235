"""A source in the folder of a run: rows that get other tokens than the run was trained with are said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.init_checkpoint import read_init

from .test_hypotheses import configuration

MODEL = {"name": "hybrid_asr", "d_model": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "n_mels": 20}
TRAINED = "{} was trained with the token list en.txt, in which row 2 is 'a', not 'd' as in rev.txt"
LISTS = {"en": "abcd", "rev": "dcba", "ru": "wxyzab", "more": "dcbaxy"}


@pytest.fixture
def run(cheap: None) -> str:
    """Train a model of the tokens in en.txt for two steps; there are configurations of the tokens in other lists, too."""
    configuration()
    data = {"train": "train.csv", "dev": "dev.csv"}
    train = {"task": "hybrid", "steps": 2, "batch_size": 7, "evaluate_every": 2, "features": {"kind": "waves"}}
    for name, letters in LISTS.items():
        Path(f"{name}.txt").write_text("\n".join(["<blank>", "<unk>", *letters, "<sos/eos>"]) + "\n")
        content = {"model": {**MODEL, "tokens": f"{name}.txt"}, "train": {**train, "data": data}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    cs.train("en.yaml", run="run", keep_going=True)
    return "run"


def said(source: str, target: str, **options: Any) -> list[str]:
    words = ("trained", "position", "list")
    return [note for note in cs.transplant(source, target, **options).notes if any(word in note for word in words)]


def of_init(config: str) -> list[str]:
    job = build_job(config, device="cpu", init=read_init("run/best.safetensors"))
    return [note for note in job.notes if "other tokens" in note]


def test_rows_of_a_run_that_get_other_tokens_are_said(run: str) -> None:
    sources = ["run/best.safetensors", "run", "run/last", "run/last/model.safetensors", "run/steps/2/model.safetensors"]
    for source in sources:
        name = os.path.basename(source)
        assert said(source, "ru.yaml", vocab="rev.txt:ru.txt") == [
            f"{TRAINED.format(name)}: the list of --vocab is used"
        ]
        assert said(source, "rev.yaml") == [
            f"rows are copied by position, but {TRAINED.format(name)}: use --vocab en.txt:rev.txt"
        ]
        assert said(source, "ru.yaml", vocab="en.txt:ru.txt") == []
        assert said(source, "en.yaml") == []
        assert said(source, "rev.yaml", vocab="place") == []
    shutil.copy("run/best.safetensors", "copy.safetensors")
    Path("again.txt").write_text(Path("en.txt").read_text().rstrip("\n"))
    assert said("run/best.safetensors", "ru.yaml", vocab="again.txt:ru.txt") == []
    assert of_init("rev.yaml") == [
        f"the rows of the init belong to other tokens: {TRAINED.format('best.safetensors')}: use --vocab "
        "en.txt:rev.txt in ckpt transplant"
    ]
    assert of_init("en.yaml") == []
    job = build_job("more.yaml", device="cpu", init=read_init("run/best.safetensors"))
    with pytest.raises(cs.PlanError, match="shape mismatch") as refused:
        job.model()
    fits = "ckpt transplant run/best.safetensors more.yaml --vocab en.txt:more.txt makes an init that fits."
    assert refused.value.hint == fits
    cs.train("rev.yaml", run="other", keep_going=True)
    both = ["run/best.safetensors", "other/best.safetensors"]
    apart = (
        f"rows are combined by position, but {both[0]} and {both[1]} have different token lists: row 2 is 'a' and 'd'"
    )
    assert apart in cs.average(both).notes
    assert apart in cs.merge(both, method="linear", weights=[0.5, 0.5]).notes
    alike = (
        cs.average([both[0], "run/last"]),
        cs.average(both, vocab="place"),
        cs.average([both[0], "copy.safetensors"]),
    )
    assert not [note for plan in alike for note in plan.notes if "token lists" in note]
    with pytest.raises(cs.PlanError, match="this is the token list with which best.safetensors was trained") as caught:
        cs.transplant("run/best.safetensors", "en.yaml", vocab="rev.txt:en.txt")
    assert caught.value.exit_code == 4
    assert "put the source's list first: --vocab en.txt:rev.txt" in caught.value.hint
    # The list is gone: the lineage still has the checksum of its tokens.
    Path("en.txt").rename("letters.txt")
    assert said("run/best.safetensors", "ru.yaml", vocab="letters.txt:ru.txt") == []
    assert said("run/best.safetensors", "ru.yaml", vocab="rev.txt:ru.txt") == [
        "best.safetensors was trained with the token list en.txt, which is missing or has changed, not with rev.txt: "
        "the list of --vocab is used"
    ]
    assert said("run/best.safetensors", "rev.yaml") == [
        "rows are copied by position, but best.safetensors was trained with the token list en.txt, which is missing "
        "or has changed, not with rev.txt: use --vocab SRC_TOKENS:DST_TOKENS"
    ]
    # Nothing is known of other files in the folder, nor of weights that were taken out of it, nor in memory.
    weights = load_file("run/best.safetensors")
    for other in ("run/other.safetensors", "copied.safetensors"):
        save_file(weights, other)
        assert said(other, "ru.yaml", vocab="rev.txt:ru.txt") == []
    os.chdir("run")
    assert said(weights, "../rev.yaml") == []  # type: ignore[arg-type]


def test_weights_that_training_changed_are_not_verified(run: str) -> None:
    init = cs.transplant("run/best.safetensors", "rev.yaml", vocab="en.txt:rev.txt")
    cs.apply(init, "rev.init.safetensors")
    cs.train("rev.yaml", run="after", init="rev.init.safetensors", keep_going=True)
    for path in ("after/best.safetensors", "after", "after/last"):
        with pytest.raises(cs.ConfigError, match="weights that ckpt train changed") as caught:
            cs.verify(path)
        assert caught.value.hint.startswith(
            "ckpt verify rev.init.safetensors checks the init of the run; ckpt diff rev"
        )
    shutil.copy("run/best.safetensors", "alone.safetensors")
    with pytest.raises(cs.ConfigError, match=r"alone.safetensors has weights that ckpt train changed \(step 2\)"):
        cs.verify("alone.safetensors")
    assert cs.verify("rev.init.safetensors").ok
    os.chdir("after/last")
    with pytest.raises(cs.ConfigError) as caught:  # weights in memory are of no folder
        cs.verify({"a": torch.zeros(2)})
    assert "ckpt train changed" not in caught.value.message


@pytest.mark.costly
@pytest.mark.parametrize("lineage", ["", "[]", "{}", '{"kind": "ckpt.lineage"}', '{"kind": "ckpt.lineage", "data": 3}'])
def test_a_lineage_that_says_nothing_of_tokens_is_no_error(lineage: str) -> None:
    for name, letters in LISTS.items():
        Path(f"{name}.txt").write_text("\n".join(["<blank>", "<unk>", *letters, "<sos/eos>"]) + "\n")
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {**MODEL, "tokens": f"{name}.txt"}}))
    Path("run").mkdir()
    Path("run/lineage.json").write_text(lineage)
    save_file({"ctc.bias": torch.zeros(7)}, "run/best.safetensors")
    assert said("run/best.safetensors", "rev.yaml", vocab="en.txt:rev.txt") == []
    data = {"kind": "ckpt.lineage", "data": {"tokens": "0" * 64}, "target": {"kind": "bundled"}}
    Path("run/lineage.json").write_text(json.dumps(data))
    assert said("run/best.safetensors", "rev.yaml", vocab="en.txt:rev.txt") == [
        "best.safetensors was trained with another token list than en.txt: the list of --vocab is used"
    ]
