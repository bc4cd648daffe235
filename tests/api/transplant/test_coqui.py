"""Coqui STT's transfer learning, against what its own code computed, loaded and dropped (``make oracle-tensorflow``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.models.deepspeech import LAYERS, MODEL

GOLDEN = Path(__file__).parents[3] / "fixtures/golden/tensorflow"
STT = GOLDEN / "stt"
RECORD = json.loads((GOLDEN / "record.json").read_text())
FEATURES = np.array(RECORD["stt"]["features"], "f4")
LENGTHS = np.array(RECORD["stt"]["lengths"])
LOGITS = np.array(RECORD["stt"]["logits"], "f4")
CELL = "cudnn_lstm.rnn.multi_rnn_cell.cell_0.cudnn_compatible_lstm_cell"
SIZES = "n_hidden: 8, n_input: 4, n_context: 1"
LETTERS = [" ", "a", "b", "c", "d", "'"]
CYRILLIC = [" ", "б", "a", "'", "в", "c", "г"]

Arrays = dict[str, np.ndarray]


def destination(labels: list[str], more: str = SIZES) -> str:
    Path("alphabet.txt").write_text("# letters\n" + "".join(f"{label}\n" for label in labels))
    Path("dst.yaml").write_text(f"model: {{name: deepspeech, alphabet: alphabet.txt, {more}}}\n")
    return "dst.yaml"


def made(**options: Any) -> dict[str, torch.Tensor]:
    """Transplant into the destination, verify what was written, and return it."""
    cs.apply(cs.transplant(options.pop("source", STT), "dst.yaml", **options), "out.pth", force=True)
    cs.verify("out.pth").raise_if_failed()
    return torch.load("out.pth", weights_only=True)


def network(labels: list[str], state: dict[str, torch.Tensor]) -> torch.nn.Module:
    fields = {**MODEL.fields, "alphabet": "\n".join(labels), "n_hidden": 8, "n_input": 4, "n_context": 1}
    model = MODEL.build(fields)
    model.load_state_dict(state, strict=True)
    return model.eval()


def tensorflow_s() -> Arrays:
    return dict(np.load(GOLDEN / "best_dev.npz"))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def forward(tensors: Arrays, features: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Coqui's network in numpy, from TensorFlow's tensors as they are: logits (batch, time, outputs)."""
    batch, time, width = features.shape
    padded = np.zeros((batch, time + 2, width), "f8")
    padded[:, 1:-1] = features
    x = np.concatenate([padded[:, i : i + time] for i in range(3)], -1)

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ tensors[f"{name}.weights"].astype("f8") + tensors[f"{name}.bias"]

    for name in ("layer_1", "layer_2", "layer_3"):
        x = np.clip(dense(name, x), 0, 20)
    kernel, bias = tensors[f"{CELL}.kernel"].astype("f8"), tensors[f"{CELL}.bias"]
    hidden = cell = np.zeros((batch, 8))
    outputs = np.zeros((batch, time, 8))
    for t in range(time):
        i, c, f, o = np.split(np.concatenate([x[:, t], hidden], -1) @ kernel + bias, 4, -1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)  # no forget bias
        hidden = sigmoid(o) * np.tanh(cell)
        outputs[:, t] = hidden * (t < lengths)[:, None]
    return dense("layer_6", np.clip(dense("layer_5", outputs), 0, 20))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_forward_pass_in_numpy_is_tensorflow_s() -> None:
    assert np.abs(forward(tensorflow_s(), FEATURES, LENGTHS) - LOGITS).max() < 1e-5


def test_the_converted_network_computes_what_tensorflow_computed() -> None:
    destination(LETTERS)
    state = made(strict=True)
    with torch.no_grad():
        said = network(LETTERS, state)(torch.from_numpy(FEATURES), torch.from_numpy(LENGTHS)).numpy()
    assert said.shape == (2, 6, 7)
    assert np.abs(said - log_softmax(LOGITS)).max() < 1e-5
    assert np.abs(said - log_softmax(forward(tensorflow_s(), FEATURES, LENGTHS))).max() < 1e-5


def test_what_is_converted_is_tensorflow_s_bit_for_bit() -> None:
    destination(LETTERS)
    state, theirs = made(), tensorflow_s()
    for n in (1, 2, 3, 5, 6):
        assert np.array_equal(state[f"layer_{n}.weight"].numpy(), theirs[f"layer_{n}.weights"].T)
        assert np.array_equal(state[f"layer_{n}.bias"].numpy(), theirs[f"layer_{n}.bias"])
    i, c, f, o = np.split(theirs[f"{CELL}.kernel"].T, 4)
    kernel = np.concatenate([i, f, c, o])
    assert np.array_equal(state["lstm.weight_ih_l0"].numpy(), kernel[:, :8])
    assert np.array_equal(state["lstm.weight_hh_l0"].numpy(), kernel[:, 8:])
    i, c, f, o = np.split(theirs[f"{CELL}.bias"], 4)
    assert np.array_equal(state["lstm.bias_ih_l0"].numpy(), np.concatenate([i, f, c, o]))
    assert not state["lstm.bias_hh_l0"].any()


@pytest.mark.long
def test_there_and_back_is_the_same_bit_for_bit(ckpt: Any) -> None:
    theirs = {key: value for key, value in tensorflow_s().items() if "Adam" not in key and value.shape}
    theirs[f"{CELL}.bias"][:4] = [-0.0, 0.0, 1e-45, -3e38]
    np.savez("odd.npz", **theirs)
    for source in (STT, "odd.npz"):
        cs.apply(cs.rename(source, ruleset="coqui-stt"), "torch.pth", force=True)
        cs.apply(cs.rename("torch.pth", ruleset="coqui-stt-tensorflow"), "tf.pth", force=True)
        cs.apply(cs.rename("tf.pth", ruleset="coqui-stt"), "again.pth", force=True)
        assert ckpt("diff", source, "tf.pth", "--values").code == 0
        assert ckpt("diff", "torch.pth", "again.pth", "--values").code == 0
        cs.verify("tf.pth").raise_if_failed()


@pytest.mark.long
def test_two_trained_biases_become_the_one_that_does_the_same() -> None:
    destination(LETTERS)
    state = made()
    state["lstm.bias_hh_l0"] = torch.randn(32)
    torch.save(state, "trained.pth")
    cs.apply(cs.rename("trained.pth", ruleset="coqui-stt-tensorflow"), "tf.npz.safetensors")
    with cs.open_checkpoint("tf.npz.safetensors") as checkpoint:
        theirs = {key: checkpoint.tensor(key).numpy() for key in checkpoint}
    with torch.no_grad():
        said = network(LETTERS, state)(torch.from_numpy(FEATURES), torch.from_numpy(LENGTHS)).numpy()
    assert np.abs(said - log_softmax(forward(theirs, FEATURES, LENGTHS))).max() < 1e-5


def test_a_destination_in_tensorflow_s_layout_gets_it() -> None:
    destination(LETTERS)
    made()
    cs.apply(cs.convert(STT), "theirs.safetensors")
    plan = cs.transplant("out.pth", "theirs.safetensors", strict=True)
    assert any("converted to TensorFlow's" in note for note in plan.notes)
    cs.apply(plan, "back.safetensors")
    assert not cs.diff(STT, "back.safetensors", values=True).differs


@pytest.mark.long
def test_the_conversion_is_said_and_recorded(ckpt: Any) -> None:
    destination(LETTERS)
    done = ckpt("transplant", STT, "dst.yaml", "-n", "--json")
    plan = json.loads(done.out)
    note = next(note for note in plan["notes"] if "Coqui" in note)
    assert (
        "is Coqui STT's layout in TensorFlow, converted to PyTorch's (8 operations, the same as --ruleset coqui-stt"
        in note
    )
    assert plan["sources"][0]["operations"][0] == {"copy": "layer_{n}.weights", "into": ["layer_{n}.weight"]}
    Path("plan.json").write_text(done.out)
    assert ckpt("apply", "plan.json", "-o", "out.safetensors").code == 0
    assert ckpt("verify", "out.safetensors").code == 0
    asked = json.loads(ckpt("transplant", STT, "dst.yaml", "-n", "--json", "--ruleset", "coqui-stt").out)
    assert asked["steps"] == plan["steps"]
    assert asked["arguments"] == {"ruleset": ["coqui-stt"]}


@pytest.mark.long
def test_operations_of_the_user_come_before_the_conversion() -> None:
    destination(LETTERS)
    plain, double = made(), made(operations=[{"scale": "layer_6.bias", "by": 2}])
    for key, value in plain.items():
        assert torch.equal(double[key], value * 2 if key == "layer_6.bias" else value), key
    plan = cs.transplant(STT, "dst.yaml", operations=[{"scale": "layer_6.bias", "by": 2}], strict=True)
    assert any("is Coqui STT's layout" in note for note in plan.notes)
    assert [*plan.sources[0].operations[0]] == ["scale", "by"]
    assert len(plan.sources[0].operations) == 9


def test_a_spec_names_keys_as_the_conversion_leaves_them() -> None:
    destination(LETTERS)
    plan = cs.transplant(f"{STT}:layer_6:layer_6", "dst.yaml")
    assert {step.key for step in plan.steps if step.kind != "initialised"} == {"layer_6.weight", "layer_6.bias"}


def test_of_several_sources_the_note_says_which() -> None:
    destination(LETTERS)
    made()
    plan = cs.transplant(["out.pth", STT], "dst.yaml")
    assert [note.partition(": the source is")[0] for note in plan.notes if "is Coqui" in note] == [str(STT)]


def test_nothing_is_converted_that_is_laid_out_otherwise() -> None:
    """Other shapes under the same names, a part of the names, a destination of other names."""
    destination(LETTERS)
    theirs = tensorflow_s()
    model = {key: value for key, value in theirs.items() if "Adam" not in key and value.shape}
    for name, tensors in {
        "shapes": {**model, f"{CELL}.kernel": np.zeros((8, 32), "f4")},
        "part": {key: value for key, value in model.items() if not key.startswith("layer_3")},
    }.items():
        np.savez(f"{name}.npz", **tensors)
        with pytest.raises(cs.PlanError):  # layer_1.bias alone has the same name in both
            cs.transplant(f"{name}.npz", "dst.yaml", strict=True)
    assert not any("Coqui" in note for note in cs.transplant(STT, STT).notes)


def test_what_is_excluded_is_named_as_the_destination_names_it() -> None:
    destination(CYRILLIC)
    plan = cs.transplant(STT, "dst.yaml", exclude=["layer_6", "lstm"])
    assert plan.counts == {"copied": 4, "derived": 4, "initialised": 6}


DROPPED = {number: set(LAYERS[-number:]) for number in range(1, 6)}


def layer_of(variable: str) -> str:
    return "lstm" if variable.startswith("cudnn_lstm") else variable.split("/")[0]


@pytest.mark.costly
@pytest.mark.parametrize("number", DROPPED)
def test_drop_last_drops_the_layers_that_coqui_drops(number: int) -> None:
    destination(CYRILLIC)
    plan = cs.transplant(STT, "dst.yaml", drop_last=number)
    drawn = {step.key for step in plan.steps if step.kind == "initialised"}
    assert {key.split(".")[0] for key in drawn} == DROPPED[number]
    theirs = RECORD["drop_source_layers"][str(number)]
    assert {layer_of(name) for name in theirs["initialised"]} - {"beta2_power"} == DROPPED[number]
    assert {step.rule for step in plan.steps if step.key in drawn} == {f"--drop-last {number}"}
    loaded = {step.key.split(".")[0] for step in plan.steps if step.key not in drawn}
    assert {layer_of(name) for name in theirs["loaded"] if name.startswith(("layer", "cudnn"))} == loaded


def test_coqui_drops_a_number_of_adam_s_by_its_digit_and_six_layers_as_five() -> None:
    """What the oracle says of theirs, and ours does not do."""
    theirs = RECORD["drop_source_layers"]
    assert "beta2_power" in theirs["5"]["initialised"]
    assert theirs["6"]["initialised"] == theirs["5"]["initialised"]
    assert any("only has 6 layers" in line for line in theirs["6"]["said"])


@pytest.mark.parametrize("number", [6, 7, 100])
def test_six_layers_or_more_are_an_error(ckpt: Any, number: int) -> None:
    destination(CYRILLIC)
    done = ckpt("transplant", STT, "dst.yaml", "--drop-last", number)
    said = " ".join(done.err.split())
    assert (done.code, Path("dst.init.safetensors").exists()) == (2, False)
    assert "layer_1 always stays. Use 1 to 5." in said


@pytest.mark.long
def test_letters_that_both_alphabets_have_keep_their_rows() -> None:
    destination(CYRILLIC)
    state = made(vocab=f"{STT}/alphabet.txt:alphabet.txt")
    theirs = tensorflow_s()
    rows = {**{letter: i for i, letter in enumerate(LETTERS)}, "blank": len(LETTERS)}
    for i, letter in enumerate([*CYRILLIC, "blank"]):
        same = letter in rows and np.array_equal(
            state["layer_6.weight"][i].numpy(), theirs["layer_6.weights"][:, rows[letter]]
        )
        assert same == (letter in rows), letter
        assert bool(state["layer_6.bias"][i] != 0) == (letter in rows)


def test_the_whole_of_coqui_s_transfer_learning_in_one_command(ckpt: Any) -> None:
    """As theirs, the output layer is drawn, whatever --vocab says: --drop-last comes first."""
    destination(CYRILLIC)
    done = ckpt(
        "transplant", STT, "dst.yaml", "--drop-last", 1, "--vocab", f"{STT}/alphabet.txt:alphabet.txt", "--json"
    )
    assert done.code == 0, done
    assert json.loads(done.out)["counts"] == {"copied": 4, "derived": 8, "initialised": 2}
    done = ckpt("transplant", STT, "dst.yaml", "--drop-last", 1, "--vocab", f"{STT}/alphabet.txt:alphabet.txt", "-n")
    said = " ".join(done.err.split())
    assert "maps no rows: layer_6.weight, layer_6.bias are initialised by --drop-last 1" in said


def test_an_alphabet_of_another_length_is_an_error_that_names_it(ckpt: Any) -> None:
    destination(CYRILLIC)
    Path("alphabet-short.txt").write_text(" \na\nb\n")
    done = ckpt("transplant", STT, "dst.yaml", "--vocab", "alphabet-short.txt:alphabet.txt")
    said = " ".join(done.err.split())
    assert done.code == 4
    assert "alphabet-short.txt has 4 tokens, but the tensor layer_6.weight is (7, 8) in the source" in said


def test_another_width_is_a_mismatch_that_names_both(ckpt: Any) -> None:
    destination(LETTERS, "n_hidden: 16, n_input: 4, n_context: 1")
    done = ckpt("transplant", STT, "dst.yaml")
    assert done.code == 4
    assert "layer_1.weight is (8, 12) in stt, (16, 12) in dst.yaml" in " ".join(done.err.split())


def test_bytes_mode_maps_outputs_and_never_a_layer_of_that_width() -> None:
    """256 outputs beside layers 256 wide."""
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text("model: {name: deepspeech, bytes: true, n_hidden: 256, n_input: 4}\n")
    spec = cs.load_target("a.yaml")
    assert spec.tensors["layer_6.weight"].shape == spec.tensors["layer_5.weight"].shape == (256, 256)
    assert spec.vocabulary == {"layer_6.weight": 0, "layer_6.bias": 0}
    torch.save({"layer_1.bias": torch.zeros(256)}, "seed.pth")
    cs.apply(cs.transplant("seed.pth", "a.yaml"), "a.pth")
    Path("bytes.txt").write_text("".join(f"<0x{byte:02X}>\n" for byte in [2, 1, *range(3, 256)]) + "<blank>\n")
    plan = cs.transplant("a.pth", "b.yaml", vocab="bytes:bytes.txt")
    assert {step.key for step in plan.steps if step.rows is not None} == {"layer_6.weight", "layer_6.bias"}
    assert all(step.axis == 0 for step in plan.steps)
    assert plan.rows is not None
    assert plan.rows.rows[:3] == (1, 0, 2)


def test_adam_s_moments_come_when_they_are_asked_for(ckpt: Any) -> None:
    """Of the layers that stay, and by the same conversion."""
    theirs = tensorflow_s()
    assert ckpt("filter", STT, "--root", "optimizer.adam_v", "--exclude", "layer_6", "-o", "v.safetensors").code == 0
    with cs.open_checkpoint("v.safetensors") as checkpoint:
        assert len(checkpoint) == 10
        assert np.array_equal(checkpoint.tensor("layer_1.weights").numpy(), theirs["layer_1.weights.Adam_1"])
    done = ckpt("rename", STT, "--root", "optimizer.adam_m", "--ruleset", "coqui-stt", "-o", "m.safetensors")
    assert done.code == 0, done
    with cs.open_checkpoint("m.safetensors") as checkpoint:
        assert np.array_equal(checkpoint.tensor("layer_1.weight").numpy(), theirs["layer_1.weights.Adam"].T)
        assert len(checkpoint) == 14


def test_a_live_network_is_loaded_from_the_folder() -> None:
    model = MODEL.build({**MODEL.fields, "alphabet": "\n".join(LETTERS), "n_hidden": 8, "n_input": 4, "n_context": 1})
    report = cs.load_into(model.eval(), STT, strict=True)
    assert report.counts == {"copied": 5, "derived": 9}
    with torch.no_grad():
        said = model(torch.from_numpy(FEATURES), torch.from_numpy(LENGTHS)).numpy()
    assert np.abs(said - log_softmax(LOGITS)).max() < 1e-5


def test_a_recipe_has_drop_last(ckpt: Any) -> None:
    destination(CYRILLIC)
    Path("recipe.yaml").write_text(
        f"source: {STT}\ndestination: dst.yaml\ndrop_last: 2\n"
        "assert: {layer_5: initialised, layer_6: initialised, lstm: derived}\n"
    )
    assert ckpt("apply", "recipe.yaml", "-o", "out.safetensors").code == 0
    recipe = json.loads(cs.open_checkpoint("out.safetensors").recipe or "")
    assert recipe["arguments"]["drop_last"] == 2
    Path("recipe.yaml").write_text(f"source: {STT}\ndestination: dst.yaml\ndrop_last: true\n")
    assert "drop_last is True, not a whole number" in ckpt("apply", "recipe.yaml", "-o", "x.safetensors").err
