"""A source whose recipe names another token list than the destination has: rows by position get wrong tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.recorded_tokens import other_tokens
from ckptsurgeon.destinations._load import target_with
from ckptsurgeon.trainer.job.init_checkpoint import read_init
from ckptsurgeon.vocabulary.vocabulary import digest_of_tokens, read_vocabulary

MODEL = {"name": "hybrid_asr", "d_model": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "n_mels": 12}
LETTERS = ["a", "b", "c", "d"]
KNOWN = (
    "rows are copied by position, but en.pth was made for the token list en.txt, in which row 2 is 'a', not 'd' as in "
    "rev.txt: use --vocab en.txt:rev.txt"
)
GONE = (
    "rows are copied by position, but en.pth was made for the token list en.txt, which is missing or has changed, not "
    "for rev.txt: use --vocab SRC_TOKENS:DST_TOKENS"
)


@pytest.fixture(autouse=True)
def files() -> None:
    for name, letters in (("en", LETTERS), ("rev", LETTERS[::-1])):
        Path(f"{name}.txt").write_text("\n".join(["<blank>", "<unk>", *letters, "<sos/eos>"]) + "\n")
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {**MODEL, "tokens": f"{name}.txt"}}))
    torch.save({"ctc.bias": torch.zeros(7)}, "some.pth")
    cs.apply(cs.transplant("some.pth", "en.yaml"), "en.pth")


def said(**options: object) -> list[str]:
    return [note for note in cs.transplant("en.pth", "rev.yaml", **options).notes if "position" in note]  # type: ignore[arg-type]


def test_rows_for_other_tokens_are_said() -> None:
    assert said() == [KNOWN]


def test_the_list_goes_along_with_copies_and_means() -> None:
    Path("sub").mkdir()
    cs.apply(cs.convert("en.pth", dtype="float16"), "sub/half.pth")
    cs.apply(cs.average(["sub/half.pth", "en.pth"]), "mean.safetensors")
    for source in ("sub/half.pth", "mean.safetensors"):
        notes = [note for note in cs.transplant(source, "rev.yaml").notes if "position" in note]
        assert notes == [KNOWN.replace("en.pth", Path(source).name)]
    with pytest.raises(cs.PlanError, match=r"for which mean\.safetensors was made"):
        cs.transplant("mean.safetensors", "en.yaml", vocab="rev.txt:en.txt")
    cs.apply(cs.transplant("en.pth", "rev.yaml", vocab="en.txt:rev.txt"), "rev.pth")
    cs.apply(cs.convert("rev.pth"), "sub/half.pth", force=True)
    assert not [note for note in cs.transplant("sub/half.pth", "rev.yaml").notes if "position" in note]


def test_an_output_that_replaced_its_own_source_ends_the_search() -> None:
    torch.save({"ctc.bias": torch.zeros(7)}, "new.pth")
    cs.apply(cs.convert("new.pth"), "last", max_shard_size="1kB")
    for _ in range(2):  # the recipe of the second names a folder with the same header as it has itself
        cs.apply(cs.average(["last", "new.pth"]), "next", max_shard_size="1kB")
        shutil.rmtree("last")
        Path("next").rename("last")
    assert not [note for note in cs.transplant("last", "rev.yaml").notes if "position" in note]


def test_the_list_of_a_run_is_known_after_its_checkpoints_are_removed() -> None:
    tokens = read_vocabulary("en.txt").tokens
    data = {"kind": "ckpt.lineage", "data": {"tokens": digest_of_tokens(tokens)}, "target": {"kind": "bundled"}}
    Path("run/steps/3").mkdir(parents=True)
    Path("run/lineage.json").write_text(json.dumps(data))
    torch.save({"ctc.bias": torch.zeros(7)}, "run/steps/3/model.pth")
    cs.apply(cs.rename("run/steps/3/model.pth", map=["ctc=ctc"]), "copy.pth")
    Path("run/steps/3/model.pth").unlink()
    for vocab, number in (("en.txt:rev.txt", 0), ("rev.txt:rev.txt", 1)):
        notes = cs.transplant("copy.pth", "rev.yaml", vocab=vocab).notes
        assert sum("copy.pth was trained with another token list than rev.txt" in note for note in notes) == number


@pytest.mark.costly
@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_list_that_is_gone_is_compared_by_its_checksum(change: str) -> None:
    if change == "gone":
        Path("en.txt").unlink()
    else:
        Path("en.txt").write_text(Path("rev.txt").read_text())
    assert said() == [GONE]
    Path("rev.txt").write_text("\n".join(["<blank>", "<unk>", *LETTERS, "<sos/eos>"]) + "\n")
    assert said() == []


@pytest.mark.costly
@pytest.mark.parametrize("options", [
    {"vocab": "en.txt:rev.txt"}, {"vocab": "place"}, {"exclude": ["ctc.*", "decoder.embed.*", "decoder.out.*"]},
])  # fmt: skip
def test_rows_that_do_not_go_by_position_are_not_said(options: dict[str, object]) -> None:
    assert said(**options) == []


@pytest.mark.long
def test_an_equal_list_in_another_file_is_not_said() -> None:
    Path("rev.txt").write_text(Path("en.txt").read_text().rstrip("\n"))
    assert said() == []


@pytest.mark.long
def test_the_source_s_list_in_vocab_is_compared_with_the_recipe() -> None:
    def told(vocab: str, target: str = "rev.yaml") -> list[str]:
        return [note for note in cs.transplant("en.pth", target, vocab=vocab).notes if "list of" in note]

    Path("ru.txt").write_text("\n".join(["<blank>", "<unk>", *"dabc", "<sos/eos>"]) + "\n")
    Path("copy.txt").write_text(Path("en.txt").read_text().rstrip("\n"))
    assert told("en.txt:rev.txt") == told("copy.txt:rev.txt") == []
    assert told("ru.txt:rev.txt") == [
        "en.pth was made for the token list en.txt, in which row 2 is 'a', not 'd' as in ru.txt: the list of --vocab is used"
    ]
    with pytest.raises(
        cs.PlanError, match="en.txt as the destination's token list, .* for which en.pth was made"
    ) as caught:
        told("rev.txt:en.txt", "en.yaml")
    assert caught.value.exit_code == 4
    Path("en.txt").unlink()
    assert told("ru.txt:rev.txt") == [
        "en.pth was made for the token list en.txt, which is missing or has changed, not for ru.txt: the list of --vocab "
        "is used"
    ]


def test_two_lists_with_one_name_are_told_apart() -> None:
    Path("ru").mkdir()
    Path("ru/en.txt").write_text("\n".join(["<blank>", "<unk>", *"dabc", "<sos/eos>"]) + "\n")
    (note,) = [n for n in cs.transplant("en.pth", "rev.yaml", vocab="ru/en.txt:rev.txt").notes if "list of" in n]
    assert "made for the token list en.txt, in which row 2 is 'a', not 'd' as in ru/en.txt" in note


@pytest.mark.long
def test_an_init_of_a_run_is_compared_too() -> None:
    cs.apply(cs.transplant("en.pth", "rev.yaml", vocab="en.txt:rev.txt"), "good.pth")
    target = target_with("rev.yaml", None)
    for name, start in (
        ("en.pth", "en.pth was made for the token list en.txt, in which row 2 is 'a'"),
        ("good.pth", ""),
    ):
        init = read_init(name)
        assert init.recipe is not None
        told = other_tokens(init.recipe, name, target)
        assert told.startswith(start)
        assert bool(told) == bool(start)
