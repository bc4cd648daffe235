"""A token list of another model: the rows of its placeholders were trained, and those of some of its words were not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FREE = [f"[unused{one}]" for one in range(99)]
WORDS = [f"word{one}" for one in range(600)]
OWN = [SPECIAL[0], *FREE, *SPECIAL[1:], *WORDS]
OTHER = [SPECIAL[0], *WORDS[:99], *SPECIAL[1:], *WORDS[99:501], *FREE, *WORDS[501:]]
KEY = "embeddings.word_embeddings.weight"


def rows(spread: float = 0.1, size: float = 0.35, free: Sequence[int] = range(1, 100)) -> torch.Tensor:
    """Return the rows of ``OWN``: norms of words have the mean 1, and those of the rows ``free`` the mean ``size``.

    ``spread`` is the standard deviation of the norms of the rows ``free``, as a share of their mean.
    """
    draw = torch.Generator().manual_seed(0)
    made = torch.randn(len(OWN), 64, generator=draw)
    made /= made.norm(dim=1, keepdim=True)
    scales = 1 + 0.1 * torch.randn(len(OWN), generator=draw)
    scales[list(free)] = size * (1 + spread * torch.randn(len(free), generator=draw))
    return made * scales[:, None]


def findings(tokens: Sequence[str], values: torch.Tensor) -> list[str]:
    Path("m").mkdir()
    config = {"model_type": "bert", "vocab_size": len(values), "pad_token_id": 0, "hidden_size": 64}
    Path("m/config.json").write_text(json.dumps(config))
    vocabulary = {one: number for number, one in enumerate(tokens)}
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    Path("m/tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))
    save_file({KEY: values}, "m/model.safetensors", {"format": "pt"})
    return of_list("m")


def of_list(path: str) -> list[str]:
    return [one.what for one in cs.check(path).row("untrained-rows").found if "another model" in one.what]


def test_the_list_of_another_model_is_found() -> None:
    assert findings(OTHER, rows(0.02)) == [
        f"{KEY} has 99 successive rows that seem never trained, from 'word0' to 'word98', but trained rows of 99 "
        "placeholders such as '[unused98]': perhaps the token list belongs to another model"
    ]
    assert cs.check("m").row("untrained-rows").status.value == "WARN"


@pytest.mark.parametrize(
    ("tokens", "values"),
    [
        (OWN, rows(0.02)),
        ([one.replace("[unused", "[word") for one in OTHER], rows(0.02)),  # without placeholders
        ([one if one in FREE[:49] else one.replace("[unused", "[word") for one in OTHER], rows(0.02)),  # with few
        ([one.replace("[unused", "<extra_id_") for one in OTHER], rows(0.02)),  # sentinels of T5 are trained
        (OTHER, rows(0.1)),  # rare letters have small rows too, but of many norms
        (OTHER, rows(0.02, 0.9)),
        (OTHER, rows(0.02, free=range(1, 50))),
        (OWN, rows(0.02, free=[*range(1, 100), *range(300, 400)])),  # rare words that no text has
        (OWN, rows(0.02, free=[*range(41, 100), *range(300, 400)])),  # and some placeholders got a use
    ],
)
def test_sound_lists_and_lists_without_placeholders_get_no_warning(tokens: Sequence[str], values: torch.Tensor) -> None:
    assert not findings(tokens, values)


@pytest.mark.long
def test_a_real_model_passes_with_its_own_list_but_not_with_a_changed_one(minilm: Path) -> None:
    copytree(minilm, "m")
    assert not of_list("m")
    document = json.loads(Path("m/tokenizer.json").read_text())
    tokens = list(document["model"]["vocab"])
    free = [one for one in tokens if one.startswith("[unused")]
    words = tokens[5000 : 5000 + len(free)]
    exchanged = {**dict(zip(free, words, strict=True)), **dict(zip(words, free, strict=True))}
    document["model"]["vocab"] = {exchanged.get(one, one): number for number, one in enumerate(tokens)}
    Path("m/tokenizer.json").write_text(json.dumps(document))
    assert len(of_list("m")) == 1
