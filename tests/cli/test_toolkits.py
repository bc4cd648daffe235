"""The table for people who come from another toolkit: every command in it is run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs

from ..helpers.transformers_models import BERT, model_of, opened, saved
from ..project.test_documentation import ROOT, quoted, table

PAGE = (ROOT / "docs/transplant.md").read_text()
SECTION = PAGE[PAGE.index("## Coming from another toolkit") :]
ROWS = table(SECTION, "## Coming")
COMMANDS = [text for row in ROWS for text in quoted(row[1]) if text.startswith("ckpt ")]
EXPECTED = {
    "ckpt transplant f.pth dst.yaml": None,
    "ckpt transplant f.pth:::decoder dst.yaml": {"copied": 2, "initialised": 4},
    "ckpt transplant f.pth dst.yaml --exclude decoder": {"copied": 4, "initialised": 2},
    "ckpt transplant --source f.pth --source lm.pth:decoder:decoder dst.yaml": {"copied": 6},
    "ckpt transplant f.pth dst.yaml --ignore-mismatch": {"copied": 4, "initialised": 2},
    "ckpt transplant english stt.yaml --drop-last 1": {"copied": 12, "initialised": 2},
    "ckpt transplant english stt.yaml --drop-last 3": {"copied": 6, "initialised": 8},
    "ckpt transplant english stt.yaml --vocab english/alphabet.txt:alphabet.txt": {"copied": 14},
    "ckpt transplant encoder.ckpt::encoder dst.yaml": {"copied": 2, "initialised": 4},
    "ckpt transplant save sb.yaml --map 0=enc --map 1=head": {"copied": 4},
    "ckpt transplant f.pth dst.yaml --ignore-mismatch --require encoder": {"copied": 4, "initialised": 2},
    "ckpt transplant bert labels.yaml --on-mismatch classifier=init -o start/": {"copied": 39, "initialised": 2},
    "ckpt transplant bert-base labels.yaml --require bert": {"copied": 39, "initialised": 2},
    "ckpt transplant f.pth dst.yaml --strict": None,
}
"""What each of them ends in; None for exit 4."""

Run = Callable[..., Any]


def network(vocab: int) -> dict[str, torch.Tensor]:
    parts = {"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, vocab), "decoder2": nn.Linear(4, 3)}
    return nn.ModuleDict(parts).state_dict()


def bert() -> dict[str, torch.Tensor]:
    """Write what the rows of transformers are about; returns what should come of it."""
    head = "BertForSequenceClassification"
    saved("bert", BERT, head)
    saved("bert-base", BERT, "BertModel")
    shown = re.search(r"`model: \{(transformers: bert, num_labels: 5)\}`", SECTION)
    assert shown
    Path("labels.yaml").write_text(f"model: {{{shown[1]}}}")
    wanted: dict[str, torch.Tensor] = model_of(BERT, head, num_labels=5).state_dict()
    return wanted


@pytest.fixture
def _models() -> None:
    torch.manual_seed(0)
    torch.save(network(5), "f.pth")
    torch.save(network(7), "lm.pth")
    torch.save(nn.Linear(4, 4).state_dict(), "encoder.ckpt")
    torch.save(network(7), "new.pth")
    cs.init_config("new.pth", output="dst.yaml")
    shutil.copytree(ROOT / "fixtures/golden/tensorflow/stt", "english")
    Path("alphabet.txt").write_text("а\nб\na\n \n")
    Path("stt.yaml").write_text(
        "model: {name: deepspeech, alphabet: alphabet.txt, n_hidden: 8, n_input: 4, n_context: 1}"
    )
    parts = {"enc": nn.Linear(4, 4), "head": nn.Linear(4, 5)}
    torch.save(nn.ModuleDict(parts).state_dict(), "sb.pth")
    cs.init_config("sb.pth", output="sb.yaml")
    Path("save/CKPT+best").mkdir(parents=True)
    Path("save/CKPT+best/CKPT.yaml").write_text("WER: 12.5\n")
    torch.save(nn.ModuleList(parts.values()).state_dict(), "save/CKPT+best/model.ckpt")


def test_every_command_of_the_table_is_expected() -> None:
    assert list(dict.fromkeys(COMMANDS)) == list(EXPECTED)


@pytest.mark.usefixtures("_models")
@pytest.mark.parametrize("command", EXPECTED)
def test_a_command_of_the_table_does_what_the_toolkit_does(ckpt: Run, command: str) -> None:
    expected = EXPECTED[command]
    target = bert() if "bert" in command else network(7)
    given, _, folder = command.partition(" -o ")
    output = folder or "out.pth"
    done = ckpt(*shlex.split(given)[1:], "-o", output, "--json")
    if expected is None:
        assert (done.code, Path("out.pth").exists()) == (4, False)
        return
    assert done.code == 0, done
    counts = cs.verify(output).to_json()
    assert counts["ok"]
    assert {
        kind: counts[field] for kind, field in (("copied", "compared"), ("initialised", "drawn")) if counts[field]
    } == expected
    if "stt" in command or "sb.yaml" in command:
        target = cs.load_target("stt.yaml" if "stt" in command else "sb.yaml").tensors
    if folder:
        assert not opened("BertForSequenceClassification", folder)[1]
    assert {k: v.shape for k, v in cs.open_checkpoint(output).items()} == {k: v.shape for k, v in target.items()}


@pytest.mark.usefixtures("_models")
def test_flags_without_a_command_are_options_that_there_are(ckpt: Run) -> None:
    help_text = ckpt("transplant", "-h").out
    for row in ROWS:
        for flag in re.findall(r"(?<![\w-])--[a-z-]+", " ".join(quoted(row[1]))):
            assert flag in help_text, flag
    assert ckpt("transplant", "f.pth", "dst.yaml", "--on-mismatch", "decoder=overlap").code == 0


@pytest.mark.usefixtures("_models")
def test_a_prefix_takes_more_than_the_exact_form_and_is_said_to(ckpt: Run) -> None:
    done = ckpt("transplant", "f.pth:::decoder", "dst.yaml", "-n")
    assert "decoder2" in done.err
    assert "decoder2" not in ckpt("transplant", "f.pth", "dst.yaml", "--exclude", "decoder", "-n").err


@pytest.mark.usefixtures("_models")
def test_both_ways_around_an_unread_configuration_work(ckpt: Run) -> None:
    shown = re.search(r"`(model: \{_target_: recipe\.build.*?\})`", SECTION)
    assert shown
    Path("factory.yaml").write_text(shown[1])
    Path("recipe.py").write_text(
        "from torch import nn\n"
        "def build(vocab):\n"
        "    return nn.ModuleDict({'encoder': nn.Linear(4, 4), 'decoder': nn.Linear(4, vocab)})\n"
    )
    assert ckpt("transplant", "f.pth", "factory.yaml", "--exclude", "decoder").code == 0
    assert ckpt("init", "new.pth", "-o", "mine.yaml").code == 0
    assert ckpt("transplant", "f.pth", "mine.yaml", "--exclude", "decoder").code == 0
    assert ckpt("transplant", "f.pth", "new.pth", "--exclude", "decoder", "-o", "kept.pth").code == 0
    kept, new = torch.load("kept.pth"), torch.load("new.pth")
    assert torch.equal(kept["decoder.weight"], new["decoder.weight"])
