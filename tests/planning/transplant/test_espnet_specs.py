"""ESPnet's ``file:src_key:dst_key:exclude_keys``, held against what ESPnet does with it.

Both sides get the same files and the same destinations, whose values say where they came from; ESPnet's side is the
recording of ``load_pretrained_model`` in ``fixtures/golden/espnet/specs.json``, strict and with ``ignore_init_mismatch``.
Where theirs is a result, ours is the same one, bit for bit. Where theirs loads nothing and says nothing, or fails and
leaves a model half loaded, ``OURS`` says what ours does instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.storage.read.spec import parse_spec
from fixtures.espnet_models import ORDER, declared, layouts, loaded, recorded, toy, write_files

SPECS = recorded("specs")
LAYOUTS = layouts()
MODES = ("strict", "ignoring")
RUNS = [(name, mode) for name in SPECS for mode in MODES]


class Ours(NamedTuple):
    """What we do where ESPnet gives no result, or one that nobody can have meant.

    ``number`` of tensors that are loaded, and the note that says so; or ``exit`` and the error.
    """

    says: str
    number: int = 0
    exit: int = 0


def loads(number: int, says: str = "") -> Ours:
    return Ours(says, number=number)


def refuses(code: int, says: str) -> Ours:
    return Ours(says, exit=code)


OURS: dict[str, Ours | tuple[Ours | None, Ours | None]] = {
    # Nothing is loaded there, and nothing said: an empty exclude begins every key.
    "toy + file.pth:::": loads(12, "the empty exclude of 'file.pth:::' is ignored"),
    "toy + file.pth:::,": loads(12, "an empty exclude in 'file.pth:::,' is ignored"),
    "toy + file.pth:decoder:decoder:": loads(3, "the empty exclude of"),
    "toy + file.pth:::decoder,": loads(9, "an empty exclude in"),
    # An exclude that hits nothing is silent there.
    "toy + file.pth:decoder:decoder:embed": refuses(2, "exclude embed matches none .* Did you mean decoder.embed?"),
    "toy + file.pth:::decoder, bn": loads(4, "the spaces around 'bn'"),
    "toy + file.pth::: decoder": loads(9, "the spaces around 'decoder'"),
    # A dot too much eats a letter there; half a name is a prefix of two modules.
    "toy + file.pth:decoder.:decoder": loads(3, "src_key 'decoder.' of .* is read as 'decoder'"),
    "toy + file.pth:encoder.:encoder": loads(2, "src_key 'encoder.' of .* is read as 'encoder'"),
    "toy + file.pth:encoder:encoder": (loads(2), None),
    "toy + file.pth:encoder:encoder2": (loads(2), None),
    "toy + file.pth:enc:encoder": refuses(2, r"src_key enc matches none .* Did you mean encoder \(2 keys\)?"),
    "toy + file.pth:nosuch:encoder": refuses(2, "src_key nosuch matches none .* The source keys begin with bn"),
    "toy + file.pth:encoder:nosuch": refuses(
        2, "dst_key nosuch of file.pth is not a module of the destination. Use one of the modules of the destination"
    ),
    "toy + file.pth:decoder": refuses(4, "nothing would be loaded.*Did you mean file.pth:decoder:decoder?"),
    "toy + file.pth::decoder": refuses(4, "nothing would be loaded.*Did you mean file.pth:decoder:decoder?"),
    "toy + file.pth:a:b:c:d": refuses(2, "more than three fields"),
    "toy + nothing.pth": refuses(3, "nothing.pth does not exist"),
    # Files that are not a bare state dict.
    "toy + checkpoint.pth": loads(12),
    "toy + wrapped.pth": loads(12, "the prefix module was removed from the keys of wrapped.pth"),
    "toy + epoch.pth": (loads(12), None),
    # Shapes. (1,) and 0-d are one number.
    "toy + one.pth": (None, loads(12)),
    "scaled + scalar.pth": loads(13),
    "toy7 + file.pth": (refuses(4, "shape mismatch: decoder.embed.weight is (5, 4) .* 2 others too"), None),
    "conformer + conformer13.pth": (refuses(4, "shape mismatch: decoder.embed.0.weight .* 4 others too"), None),
    "conformer + conformer13.pth:decoder:decoder": (refuses(4, "shape mismatch: decoder.embed.0.weight"), None),
    # What the destination has no place for is listed as unexpected, and an error with --strict.
    "nobn + file.pth": (loads(7), None),
    "conformer + ebranchformer.pth": (loads(74), None),
    "ebranchformer + conformer.pth": (loads(74), None),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("espnet")
    write_files(folder, LAYOUTS)
    for name in {row["target"] for row in SPECS.values()}:
        tied = [["decoder.embed.weight", "decoder.out.weight"]] if name == "tied" else []
        (folder / f"{name}.json").write_text(json.dumps(declared(LAYOUTS[name], tied)))
    return folder


@pytest.fixture(autouse=True)
def _beside(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


def ours_for(name: str, mode: str) -> Ours | None:
    found = OURS.get(name)
    return found if found is None or isinstance(found, Ours) else found[MODES.index(mode)]


def written(name: str, mode: str, out: Path) -> str:
    """What ours writes for a spec, as the recording says it; what is written in one of the modes is verified."""
    row = SPECS[name]
    policy = "init" if mode == "ignoring" else ()
    cs.apply(cs.transplant(row["specs"], f"{row['target']}.json", on_mismatch=policy), out)
    assert mode != MODES[0] or cs.verify(out).ok
    return loaded(torch.load(out))


def size(runs: str) -> int:
    ends = [run.partition("<")[0].partition("-") for run in filter(None, runs.split(","))]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def test_the_recording_has_three_models_and_more_than_forty_specs() -> None:
    assert len(SPECS) >= 40
    assert {"toy", "conformer", "ebranchformer"} <= {row["target"] for row in SPECS.values()}
    assert sum(len(row["specs"]) > 1 for row in SPECS.values()) >= 3
    assert "normalize.mean" in dict.fromkeys(key for key, _, _ in LAYOUTS["conformer"])
    assert len(toy()) == 12


def test_wherever_espnet_has_no_result_ours_is_said() -> None:
    """No row of the recording can be left out, and what OURS says otherwise of is named."""
    without = {n for n, m in RUNS if "error" in SPECS[n][m] or not SPECS[n][m]["loaded"]}
    meant_otherwise = {
        "toy + file.pth:decoder:decoder:embed",
        "toy + file.pth:::decoder, bn",
        "toy + file.pth::: decoder",
        "toy + one.pth",  # with ignore_init_mismatch (1,) does not fit 0-d there, without it it does
        "scaled + scalar.pth",
    }
    assert OURS.keys() == without | meant_otherwise
    for name, mode in RUNS:
        row = SPECS[name][mode]
        if "error" in row or not row["loaded"]:
            assert ours_for(name, mode) is not None, (name, mode)


@pytest.mark.parametrize(("name", "mode"), [run for run in RUNS if ours_for(*run) is None])
def test_where_espnet_has_a_result_ours_is_the_same(name: str, mode: str, tmp_path: Path) -> None:
    assert written(name, mode, tmp_path / "out.pth") == SPECS[name][mode]["loaded"]


@pytest.mark.parametrize(("name", "mode"), [run for run in RUNS if (ours := ours_for(*run)) and ours.number])
def test_where_espnet_loads_nothing_or_half_ours_is_a_result_that_is_said(name: str, mode: str, tmp_path: Path) -> None:
    ours = ours_for(name, mode)
    assert ours is not None
    runs = written(name, mode, tmp_path / "out.pth")
    assert size(runs) == ours.number
    row = SPECS[name]
    notes = "\n".join(cs.transplant(row["specs"], f"{row['target']}.json", on_mismatch="init").notes)
    assert matches(ours.says, notes), notes


@pytest.mark.parametrize(("name", "mode"), [run for run in RUNS if (ours := ours_for(*run)) and ours.exit])
def test_where_espnet_loads_nothing_or_half_ours_is_an_error_and_writes_nothing(
    name: str, mode: str, tmp_path: Path, ckpt: Any
) -> None:
    ours, row = ours_for(name, mode), SPECS[name]
    assert ours is not None
    sources = [part for spec in row["specs"] for part in ("--source", spec)]
    ignoring = ["--ignore-mismatch"] if mode == "ignoring" else []
    done = ckpt("transplant", *sources, f"{row['target']}.json", *ignoring, "-o", tmp_path / "out.pth")
    assert done.code == ours.exit
    assert matches(ours.says, " ".join(done.err.split())), done.err
    assert list(tmp_path.iterdir()) == []


def matches(pattern: str, text: str) -> bool:
    """Whether the parts of ``pattern`` between ``.*`` stand in ``text``, in order."""
    at = 0
    for part in pattern.replace("\\", "").split(".*"):
        at = text.find(part.strip(), at)
        if at < 0:
            return False
    return True


def test_espnet_leaves_models_half_loaded_and_we_never_do() -> None:
    half = {name for name in SPECS if "error" in SPECS[name]["strict"] and SPECS[name]["strict"]["loaded"]}
    assert {"toy7 + file.pth", "conformer + conformer13.pth", "nobn + file.pth"} <= half


@pytest.mark.parametrize(
    "name", [name for name, row in SPECS.items() if row["target"] == "toy" and ours_for(name, "strict") is None]
)
def test_the_same_through_the_command_line(name: str, ckpt: Any) -> None:
    sources = [part for spec in SPECS[name]["specs"] for part in ("--source", spec)]
    done = ckpt("transplant", *sources, "toy.json", "-n", "--json")
    assert done.code == 0
    plan = json.loads(done.out)
    assert sum(step["from"] is not None for step in plan["steps"]) == size(SPECS[name]["strict"]["loaded"])


# The note where a prefix takes more than a module, and what becomes of the rest.


def said(spec: str, destination: str = "toy.json") -> str:
    return "\n".join(cs.transplant([spec], destination).notes)


@pytest.mark.parametrize(
    ("spec", "note"),
    [
        ("file.pth:::encoder", "also matches encoder2, as a prefix; --exclude encoder excludes only encoder"),
        ("file.pth:::enc", "matches encoder, encoder2, as a prefix; --exclude encoder excludes only encoder"),
        ("file.pth:::encoder.", ""),
        ("file.pth:::bn.", ""),
    ],
)
def test_a_prefix_that_takes_more_than_a_module_is_said_with_the_exact_form(spec: str, note: str) -> None:
    found = [line for line in said(spec).splitlines() if "excludes only" in line]
    assert (note in found[0]) if note else not found


def test_a_source_without_the_encoder_is_listed_and_a_gate_can_fail_on_it() -> None:
    plan = cs.transplant("noencoder.pth", "toy.json")
    assert [s.key for s in plan.steps if s.kind == "initialised"] == ["encoder.weight", "encoder.bias"]
    with pytest.raises(cs.PlanError, match="require=.encoder."):
        cs.transplant("noencoder.pth", "toy.json", require=["encoder"])


def test_what_the_destination_has_no_place_for_is_unexpected_and_an_error_with_strict() -> None:
    plan = cs.transplant("file.pth", "nobn.json")
    assert {key.split(".")[0] for _, key in plan.unexpected} == {"bn"}
    with pytest.raises(cs.PlanError, match="strict=True"):
        cs.transplant("file.pth", "nobn.json", strict=True)


def test_other_entries_of_the_file_are_shown() -> None:
    assert [(e.key, e.value) for e in cs.inspect("epoch.pth").extras] == [("epoch", 3)]
    trainer = cs.inspect("checkpoint.pth")
    assert trainer.root == "model"
    assert {e.key.split(".")[0] for e in trainer.extras} == {"reporter", "optimizers", "schedulers", "scaler"}


def test_classes_say_what_became_of_the_values() -> None:
    assert cs.transplant("one.pth", "toy.json").counts == {"copied": 11, "reshaped": 1}
    assert cs.transplant("half.pth", "toy.json").counts == {"copied": 1, "cast": 11}
    assert cs.transplant("scalar.pth", "scaled.json").counts == {"copied": 12, "reshaped": 1}


def test_a_path_that_exists_wins_over_a_reading_of_its_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b:c.pth").write_bytes(Path("file.pth").read_bytes())
    (tmp_path / "toy.json").write_bytes(Path("toy.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert cs.transplant("a:b:c.pth", "toy.json").counts == {"copied": 12}
    assert cs.transplant("a:b:c.pth:decoder:decoder", "toy.json").counts == {"copied": 3, "initialised": 9}


def test_a_missing_file_is_named_without_its_fields() -> None:
    with pytest.raises(cs.SourceError, match=r"nothing.pth does not exist"):
        cs.transplant("nothing.pth:decoder:decoder", "toy.json")


def test_a_spec_is_recorded_and_named_as_the_rule() -> None:
    made = cs.transplant("file.pth:decoder:decoder:decoder.embed", "toy.json")
    assert made.arguments["specs"] == [{"src_key": "decoder", "dst_key": "decoder", "exclude_keys": ["decoder.embed"]}]
    moved = cs.transplant("file.pth:encoder2:encoder", "toy.json")
    rules = {step.key: step.rule for step in moved.steps}
    assert rules["encoder.weight"] == "file.pth:encoder2:encoder"
    assert rules["bn.weight"] == "not under src_key encoder2"


def test_a_source_key_is_no_pattern() -> None:
    with pytest.raises(cs.PatternError, match=r"src_key dec\* matches none") as caught:
        cs.transplant("file.pth:dec*:decoder", "toy.json")
    assert "**" not in caught.value.hint


def test_what_a_source_key_leaves_is_not_missing() -> None:
    made = cs.transplant("file.pth:decoder:decoder", "toy.json", strict=True)
    assert made.counts == {"copied": 3, "initialised": 9}


def test_the_numbers_of_the_files_tell_them_apart() -> None:
    first = {int(torch.load(f"{name}.pth")[LAYOUTS["toy"][0][0]].flatten()[0]) for name in ORDER[:2]}
    assert first == {1, 1001}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("https://host.org:8080/a.pth:enc:encoder:enc.embed", ("https://host.org:8080/a.pth", "enc", "encoder", ("enc.embed",))),
        ("https://host.org/a.pth::decoder", ("https://host.org/a.pth", "", "decoder", ())),
        ("https://me:secret@host.org/a.pth", ("https://me:secret@host.org/a.pth", "", "", ())),
        ("hf://org/repo@main/a.pth:::decoder", ("hf://org/repo@main/a.pth", "", "", ("decoder",))),
        ("s3://bucket", ("s3://bucket", "", "", ())),
        ("s3://bucket:9000", ("s3://bucket:9000", "", "", ())),
    ],
)  # fmt: skip
def test_an_address_keeps_its_port(text: str, read: tuple[object, ...]) -> None:
    spec = parse_spec(text)
    assert (spec.uri, spec.src, spec.dst, spec.exclude) == read
