"""``--vocab``: every row lands on its own token, whatever the axis, dtype and order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError, ConfigError, PatternError, PlanError
from ckptsurgeon.vocabulary.mapping import map_tokens
from ckptsurgeon.vocabulary.vocabulary import Vocabulary

from ...helpers.depth import examples_of

EN = ["<blank>", "<unk>", "a", "b", "c", "d", "e", "f", "<sos/eos>"]
RU = ["<blank>", "<unk>", "c", "я", "a", "ж", "<sos/eos>"]
HYBRID = {"name": "hybrid_asr", "d_model": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "n_mels": 12}
ROWS = ["decoder.embed.weight", "decoder.out.weight", "decoder.out.bias", "ctc.weight", "ctc.bias"]


def tokens(path: str, listed: list[str]) -> str:
    Path(path).write_text("\n".join(listed) + "\n")
    return path


@pytest.fixture(autouse=True)
def files() -> dict[str, torch.Tensor]:
    """A source trained on EN (its values are noise), configurations for both."""
    tokens("en.txt", EN)
    tokens("ru.txt", RU)
    for name in ("en", "ru"):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {**HYBRID, "tokens": f"{name}.txt"}}))
    torch.save({"ctc.bias": torch.zeros(len(EN))}, "some.pth")
    cs.apply(cs.transplant("some.pth", "en.yaml"), "drawn.safetensors")
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in load_file("drawn.safetensors").items()}
    torch.save({"model": state}, "en.pth")
    return state


def transplanted(*args: Any, **options: Any) -> dict[str, torch.Tensor]:
    plan = cs.transplant(*args, **options)
    cs.apply(plan, "out.safetensors", force=True)
    assert cs.verify("out.safetensors").ok
    return load_file("out.safetensors")


@pytest.mark.long
def test_every_vocabulary_tensor_of_a_model_is_mapped_by_token(files: dict[str, torch.Tensor]) -> None:
    plan = cs.transplant("en.pth", "ru.yaml", vocab="en.txt:ru.txt")
    assert plan.counts == {"copied": len(files) - 5, "mapped": 5}
    assert {step.key for step in plan.steps if step.kind == "mapped"} == set(ROWS)
    made = transplanted("en.pth", "ru.yaml", vocab=("en.txt", "ru.txt"))
    fresh = transplanted("en.pth", "ru.yaml", exclude=["decoder.embed", "decoder.out", "ctc"])
    for key in ROWS:
        for row, token in enumerate(RU):
            wanted = files[key][EN.index(token)] if token in EN else fresh[key][row]
            assert torch.equal(made[key][row], wanted), (key, token)


def test_the_report_says_what_was_kept_moved_and_new(ckpt: Any) -> None:
    done = ckpt("transplant", "en.pth", "ru.yaml", "--vocab", "en.txt:ru.txt")
    assert "5 of 7 tokens kept (3 moved), 2 new" in " ".join(done.out.split())
    assert json.loads(ckpt("verify", "ru.init.safetensors", "--json").out)["failed"] == []


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("new", ["mean", "zero"])
def test_new_tokens_get_the_mean_or_zero(new: str, dtype: torch.dtype) -> None:
    save_file({"e": torch.randn(9, 700).to(dtype), "u": torch.randn(5, 9).to(dtype)}, "s.safetensors")
    save_file({"e": torch.zeros(7, 700, dtype=dtype), "u": torch.zeros(5, 7, dtype=dtype)}, "d.safetensors")
    made = transplanted("s.safetensors", "d.safetensors", vocab="en.txt:ru.txt", new_tokens=new)
    source = load_file("s.safetensors")
    for key, axis in (("e", 0), ("u", 1)):
        mean = source[key].double().mean(axis)
        narrowed = mean if dtype == torch.float64 else mean.float().to(dtype)
        row = made[key].select(axis, RU.index("я"))
        if new == "zero":
            assert torch.equal(row, torch.zeros_like(row))
        else:
            torch.testing.assert_close(row, narrowed, rtol=1e-6 if dtype != torch.bfloat16 else 1e-2, atol=1e-6)
        assert torch.equal(made[key].select(axis, RU.index("c")), source[key].select(axis, EN.index("c")))


def test_new_tokens_are_composed_of_the_sources_pieces() -> None:
    tokens("old.txt", ["<unk>", "a", "b", "ab", "c"])
    tokens("new.txt", ["<unk>", "abc", "ca", "xyz", "b"])
    save_file({"e": torch.randn(5, 4)}, "s.safetensors")
    save_file({"e": torch.zeros(5, 4)}, "d.safetensors")
    made = transplanted(
        "s.safetensors", "d.safetensors", vocab="old.txt:new.txt", vocab_keys="e", new_tokens="subword"
    )["e"]
    old = load_file("s.safetensors")["e"]
    torch.testing.assert_close(made[1], old[[3, 4]].mean(0))
    torch.testing.assert_close(made[2], old[[4, 1]].mean(0))
    assert torch.equal(made[3], torch.zeros(4))
    assert torch.equal(made[4], old[2])


def test_a_unigram_model_is_cut_by_its_scores() -> None:
    fewest = map_tokens(Vocabulary("s", ("ab", "a", "b", "c", "bc")), Vocabulary("d", ("abc", "a")), new="subword")
    scored = map_tokens(
        Vocabulary("s", ("ab", "a", "b", "c", "bc"), (-9.0, -1.0, -1.0, -1.0, -9.0)),
        Vocabulary("d", ("abc", "a")),
        new="subword",
    )
    assert fewest.rows[0] in ((0, 3), (1, 4))
    assert scored.rows[0] == (1, 2, 3)


@pytest.mark.long
@examples_of(40)
@given(st.permutations(EN), st.booleans())
def test_a_reordered_vocabulary_lands_on_its_tokens_and_goes_back(order: list[str], columns: bool) -> None:
    """The sizes are the same, so that nothing but the tokens tells."""
    tokens("other.txt", order)
    tensor = torch.randn(9, 9)
    save_file({"e": tensor}, "s.safetensors")
    save_file({"e": torch.zeros(9, 9)}, "d.safetensors")
    key = f"e={int(columns)}"
    made = transplanted("s.safetensors", "d.safetensors", vocab="en.txt:other.txt", vocab_keys=[key])["e"]
    wanted = tensor.index_select(int(columns), torch.tensor([EN.index(token) for token in order]))
    assert torch.equal(made, wanted)
    save_file({"e": made}, "m.safetensors")
    assert torch.equal(
        transplanted("m.safetensors", "d.safetensors", vocab="other.txt:en.txt", vocab_keys=[key])["e"], tensor
    )


def test_tokens_that_are_spelled_differently() -> None:
    tokens("hf.txt", ["[PAD]", "[UNK]", "a", "b", "|"])
    save_file({"e": torch.randn(9, 3)}, "s.safetensors")
    save_file({"e": torch.zeros(5, 3)}, "d.safetensors")
    made = transplanted(
        "s.safetensors", "d.safetensors", vocab="en.txt:hf.txt", token_map=["<blank>=[PAD]", "<unk>=[UNK]"]
    )["e"]
    source = load_file("s.safetensors")["e"]
    assert torch.equal(made[:4], source[:4])
    assert torch.equal(made[4], torch.zeros(3))


def test_axes_that_other_dimensions_share_are_never_guessed() -> None:
    """Coqui's bytes mode: 256 outputs beside layers of 256 units."""
    save_file({"layer_5.weight": torch.randn(256, 256), "layer_6.weight": torch.randn(256, 256)}, "s.safetensors")
    save_file({"layer_5.weight": torch.zeros(256, 256), "layer_6.weight": torch.zeros(256, 256)}, "d.safetensors")
    tokens("alphabet.txt", [f"<0x{255 - n:02X}>" for n in range(255)])
    with pytest.raises(PlanError, match="no shape shows which tensors have a vocabulary axis"):
        cs.transplant("s.safetensors", "d.safetensors", vocab="bytes:alphabet.txt")
    with pytest.raises(PlanError, match=r"axes 0 and 1 of layer_6.weight \(256, 256\) both fit"):
        cs.transplant("s.safetensors", "d.safetensors", vocab="bytes:alphabet.txt", vocab_keys="layer_6")
    made = transplanted("s.safetensors", "d.safetensors", vocab="bytes:alphabet.txt", vocab_keys="layer_6.weight=0")
    source = load_file("s.safetensors")
    assert torch.equal(made["layer_5.weight"], source["layer_5.weight"])
    assert torch.equal(made["layer_6.weight"][0], source["layer_6.weight"][254])
    assert torch.equal(made["layer_6.weight"][255], source["layer_6.weight"][255])


def test_lists_of_another_length_than_every_axis_are_an_error_that_says_so() -> None:
    for name in ("s.safetensors", "d.safetensors"):
        save_file({"embed.weight": torch.randn(9, 4)}, name)
    tokens("old.txt", list("abcdefgh"))
    tokens("new.txt", list("hgfedcba"))
    with pytest.raises(
        PlanError, match="lists of both models have 8 tokens, but no tensor of the destination has an axis of this"
    ):
        cs.transplant("s.safetensors", "d.safetensors", vocab="old.txt:new.txt")


def test_where_sizes_differ_the_one_axis_that_fits_is_taken() -> None:
    save_file(
        {"a": torch.randn(9, 4), "b": torch.randn(4, 9), "c": torch.randn(4, 4), "d": torch.randn(9)}, "s.safetensors"
    )
    save_file(
        {"a": torch.zeros(7, 4), "b": torch.zeros(4, 7), "c": torch.zeros(4, 4), "d": torch.zeros(7)}, "d.safetensors"
    )
    plan = cs.transplant("s.safetensors", "d.safetensors", vocab="en.txt:ru.txt")
    assert {step.key: step.axis for step in plan.steps if step.kind == "mapped"} == {"a": 0, "b": 1, "d": 0}


def notes_of(plan: cs.Plan) -> str:
    return " ".join(note for note in plan.notes if "order" in note)


@pytest.mark.long
def test_a_tensor_that_nobody_declares_and_that_keeps_its_order_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one size or of two: a policy would fit it without a word of its rows."""
    from ckptsurgeon.trainer.models.hybrid_asr import MODEL

    declared = {key: axis for key, axis in MODEL.vocabulary.items() if key != "ctc.bias"}
    monkeypatch.setattr(type(MODEL), "vocabulary", declared)
    tokens("reversed.txt", EN[::-1])
    options: dict[str, Any] = {"vocab": "en.txt:reversed.txt"}
    plan = cs.transplant("en.pth", "en.yaml", **options)
    assert notes_of(plan) == (
        "1 tensor with an axis of 9 keeps its order; if the axis is a vocabulary, map it with --vocab-keys ctc.bias=0"
    )
    named = cs.transplant("en.pth", "en.yaml", **options, vocab_keys="ctc.bias=0")
    assert {step.key for step in named.steps if step.kind == "mapped"} == set(ROWS)  # with those that are declared
    assert notes_of(named) == ""
    assert notes_of(cs.transplant("en.pth", "en.yaml", **options, reinit=["ctc.bias"])) == ""
    assert notes_of(cs.transplant("en.pth", "en.yaml", vocab="en.txt:en.txt")) == ""
    other: dict[str, Any] = {"vocab": "en.txt:ru.txt"}
    with pytest.raises(PlanError, match="shape mismatch: ctc.bias"):
        cs.transplant("en.pth", "ru.yaml", **other)
    cut = cs.transplant("en.pth", "ru.yaml", **other, on_mismatch="slice")
    assert "an axis from 9 to 7 keeps its order" in notes_of(cut)
    assert notes_of(cs.transplant("en.pth", "ru.yaml", **other, on_mismatch="init")) == ""


@pytest.mark.long
def test_a_size_that_many_tensors_share_is_said_in_one_line() -> None:
    for name in ("en", "ru"):
        fields = {**HYBRID, "d_model": 10, "tokens": f"{name}.txt"}
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": fields}))
    tokens("en.txt", [*EN, "z"])
    tokens("ru.txt", [*EN[::-1], "z"])
    torch.save({"ctc.bias": torch.zeros(10)}, "some.pth")
    cs.apply(cs.transplant("some.pth", "en.yaml"), "en.pth", force=True)
    plan = cs.transplant("en.pth", "ru.yaml", vocab="en.txt:ru.txt")
    assert {step.key for step in plan.steps if step.kind == "mapped"} == set(ROWS)
    said = notes_of(plan)
    assert "tensors with an axis of 10 keep their order" in said
    assert said.endswith("map it with --vocab-keys GLOB=AXIS")


def test_a_tensor_that_differs_elsewhere_too_is_a_mismatch() -> None:
    save_file({"a": torch.randn(9, 4)}, "s.safetensors")
    save_file({"a": torch.zeros(7, 5)}, "d.safetensors")
    with pytest.raises(PlanError, match="shape mismatch"):
        cs.transplant("s.safetensors", "d.safetensors", vocab="en.txt:ru.txt", vocab_keys="a=0")


def test_tied_tensors_stay_one_and_reinit_wins() -> None:
    weight = torch.randn(9, 4)
    torch.save({"embed": weight, "out": weight, "bias": torch.randn(9)}, "s.pth")
    other = torch.zeros(7, 4)
    torch.save({"embed": other, "out": other, "bias": torch.zeros(7)}, "d.pth")
    plan = cs.transplant("s.pth", "d.pth", vocab="en.txt:ru.txt", reinit=["bias"])
    assert [(step.key, step.kind, step.tied_to) for step in plan.steps] == [
        ("embed", "mapped", ""), ("out", "mapped", "embed"), ("bias", "kept", ""),
    ]  # fmt: skip
    cs.apply(plan, "out.pth")
    assert cs.verify("out.pth").ok


@pytest.mark.long
def test_flags_a_plan_in_json_and_a_recipe_give_the_same(ckpt: Any) -> None:
    args = ("transplant", "en.pth", "ru.yaml", "--vocab", "en.txt:ru.txt", "--new-tokens", "mean")
    assert ckpt(*args, "-o", "a.safetensors").code == 0
    Path("p.json").write_text(ckpt(*args, "-n", "--json").out)
    Path("en.txt").rename("away.txt")  # a plan holds the rows, not the list
    assert ckpt("apply", "p.json", "-o", "c.safetensors").code == 0
    Path("away.txt").rename("en.txt")
    assert Path("a.safetensors").read_bytes() == Path("c.safetensors").read_bytes()
    assert ckpt("verify", "c.safetensors", "--plan", "p.json").code == 0
    Path("r.yaml").write_text(yaml.safe_dump(
        {"source": "en.pth", "destination": "ru.yaml", "vocab": ["en.txt", "ru.txt"], "new_tokens": "mean"}
    ))  # fmt: skip
    assert ckpt("apply", "r.yaml", "-n", "--json").out == ckpt(*args, "-n", "--json").out


def test_a_row_that_was_changed_is_found() -> None:
    cs.apply(cs.transplant("en.pth", "ru.yaml", vocab="en.txt:ru.txt"), "out.safetensors")
    found = load_file("out.safetensors")
    recipe = cs.open_checkpoint("out.safetensors").recipe
    assert recipe is not None
    plan = cs.transplant("en.pth", "ru.yaml", vocab="en.txt:ru.txt")
    found["ctc.weight"][RU.index("c")] += 1
    save_file(found, "changed.safetensors")
    failed = cs.verify("changed.safetensors", plan=plan).failed
    assert [failure.key for failure in failed] == ["ctc.weight"]


WRONG: list[tuple[dict[str, Any], type[CheckpointError], str]] = [
    ({"vocab": "en.txt"}, ConfigError, "does not have the form SRC:DST"),
    ({"vocab": "en.txt:"}, ConfigError, "does not have the form SRC:DST"),
    ({"vocab": "en.txt:nothing.txt"}, ConfigError, "No such file"),
    (
        {"vocab": "ru.txt:ru.txt"},
        PlanError,
        "ru.txt has 7 tokens, but the tensor decoder.embed.weight is (9, 8) in the source",
    ),
    (
        {"vocab": "en.txt:en.txt"},
        PlanError,
        "en.txt has 9 tokens, but the tensor decoder.embed.weight is (7, 8) in ru.yaml",
    ),
    ({"vocab": "en.txt:ru.txt", "new_tokens": "magic"}, ConfigError, "--new-tokens magic is unknown"),
    ({"vocab": "en.txt:ru.txt", "vocab_keys": "decodr"}, PatternError, "matches none"),
    ({"vocab": "en.txt:ru.txt", "vocab_keys": "ctc=x"}, ConfigError, "is not the index of an axis"),
    (
        {"vocab": "en.txt:ru.txt", "vocab_keys": "ctc=7"},
        PlanError,
        "--vocab-keys ctc=7: ctc.weight is (9, 8) in the source and (7, 8) in ru.yaml, so it has no axis 7. Use "
        "--vocab-keys ctc=0.",
    ),
    (
        {"vocab": "en.txt:ru.txt", "vocab_keys": "ctc=1"},
        PlanError,
        "ctc.weight is (9, 8) in the source and (7, 8) in ru.yaml, and its axis 1 is not the vocabulary's. Use "
        "--vocab-keys ctc=0.",
    ),
    ({"vocab": "en.txt:ru.txt", "token_map": ["<blank>"]}, ConfigError, "does not have the form SRC=DST"),
    ({"vocab": "en.txt:ru.txt", "token_map": ["<blnk>=<blank>"]}, ConfigError, "Did you mean <blank>"),
    (
        {"vocab": "en.txt:ru.txt", "token_map": ["a=c", "b=c"]},
        ConfigError,
        "maps both 'a' and 'b' to 'c'",
    ),
    ({"vocab": "en.txt:ru.txt", "exclude": ["decoder", "ctc"]}, PlanError, "no tensor that comes from a source"),
    ({"new_tokens": "mean"}, ConfigError, "have no effect without --vocab"),
    ({"vocab_keys": "ctc"}, ConfigError, "have no effect without --vocab"),
    (
        {"vocab": "place", "new_tokens": "mean"},
        ConfigError,
        "have no effect with --vocab place. Leave them out, or write --vocab SRC_TOKENS:DST_TOKENS.",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_what_cannot_be_is_an_error(options: dict[str, Any], error: type[CheckpointError], message: str) -> None:
    with pytest.raises(error) as caught:
        cs.transplant("en.pth", "ru.yaml", **options)
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_lists_without_a_token_in_common_are_an_error() -> None:
    tokens("ja.txt", ["あ", "い"])
    with pytest.raises(ConfigError, match="have no token in common"):
        cs.transplant("en.pth", "ru.yaml", vocab="en.txt:ja.txt")


@pytest.mark.long
def test_a_large_embedding_is_mapped_in_bounded_memory() -> None:
    """A row at a time where all are shuffled: the tensor is never whole in memory."""
    import tracemalloc

    size, width = 4000, 1024
    names = [f"t{i}" for i in range(size)]
    tokens("a.txt", names)
    tokens("b.txt", names[::-1])
    save_file({"e": torch.randn(size, width)}, "s.safetensors")
    save_file({"e": torch.zeros(size, width)}, "d.safetensors")
    plan = cs.transplant("s.safetensors", "d.safetensors", vocab="a.txt:b.txt", vocab_keys="e")
    tracemalloc.start()
    cs.apply(plan, "out.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(load_file("out.safetensors")["e"], load_file("s.safetensors")["e"].flip(0))
    assert peak < size * width * 4 // 2


def test_a_list_of_another_length_than_any_tensor_is_named_with_the_sizes() -> None:
    save_file({"w": torch.zeros(5, 4)}, "five.safetensors")
    save_file({"w": torch.zeros(7, 4)}, "seven.safetensors")
    tokens("short.txt", ["a", "b"])
    tokens("long.txt", list("abcdefg"))
    with pytest.raises(PlanError, match=r"short\.txt has 2 tokens and long\.txt 7.*w from \(5, 4\) to \(7, 4\)"):
        cs.transplant("five.safetensors", "seven.safetensors", vocab="short.txt:long.txt")


@pytest.mark.parametrize("options", [{}, {"on_mismatch": "init"}])
def test_lists_in_the_wrong_order_are_said_without_a_list_of_the_destination(options: dict[str, Any]) -> None:
    save_file({"w": torch.zeros(9, 4), "b": torch.ones(2)}, "source.safetensors")
    save_file({"w": torch.zeros(7, 4), "b": torch.ones(2)}, "destination.safetensors")
    with pytest.raises(PlanError) as error:
        cs.transplant("source.safetensors", "destination.safetensors", vocab="ru.txt:en.txt", **options)
    assert error.value.hint == "The lists fit in the other order: put the source's list first, en.txt."


@pytest.mark.parametrize("options", [{}, {"vocab_keys": "ctc"}, {"exclude": "ema"}])
def test_a_prefix_of_all_keys_is_named_with_vocab_too(options: dict[str, Any]) -> None:
    save_file({"enc.w": torch.ones(3), "ctc.weight": torch.zeros(len(RU), 8)}, "new.safetensors")
    keys = {"model.enc.w": torch.ones(3), "model.ctc.weight": torch.zeros(9, 8), "ema.w": torch.ones(2)}
    torch.save(keys, "pl.pth")
    with pytest.raises(PlanError, match="nothing would be loaded") as error:
        cs.transplant("pl.pth", "new.safetensors", vocab="en.txt:ru.txt", **options)
    assert error.value.hint.startswith("--map 'model=' would match 2 of 2 tensors.")


def test_a_layer_of_which_vocab_maps_only_the_bias_is_said() -> None:
    save_file({"ctc.weight": torch.zeros(10, 4), "ctc.bias": torch.zeros(9)}, "source.safetensors")
    save_file({"ctc.weight": torch.zeros(7, 4), "ctc.bias": torch.zeros(7)}, "destination.safetensors")
    options: dict[str, Any] = {"vocab": "en.txt:ru.txt", "on_mismatch": "slice"}
    (note,) = cs.transplant("source.safetensors", "destination.safetensors", **options).notes
    assert note == (
        "ctc.weight goes from 10 to 7 rows by position, not by token; --vocab en.txt:ru.txt (9 and 7 tokens) does not "
        "map these rows, but maps ctc.bias, in the same layer"
    )


def test_special_tokens_of_only_one_list_are_named() -> None:
    tokens("icefall.txt", ["<blk>", *EN[1:]])
    (note,) = cs.transplant("en.pth", "ru.yaml", vocab="icefall.txt:ru.txt").notes
    assert "keep the row with --token-map '<blk>=<blank>'" in note
    kept = cs.transplant("en.pth", "ru.yaml", vocab="icefall.txt:ru.txt", token_map=["<blk>=<blank>"])
    assert not kept.notes


def lists_of_one_name(first: str, second: str) -> list[str]:
    """Write a/vocab.txt and b/vocab.txt, with a token for each letter."""
    paths = []
    for name, letters in (("a", first), ("b", second)):
        Path(name).mkdir()
        Path(name, "vocab.txt").write_text("\n".join(letters) + "\n")
        save_file({"emb.weight": torch.ones(len(letters), 2)}, f"{name}.safetensors")
        paths.append(f"{name}/vocab.txt")
    return paths


@pytest.mark.parametrize("options", [{}, {"vocab": "en.txt:ru.txt", "vocab_keys": "ctc"}])
def test_an_output_layer_that_is_a_convolution_can_be_reshaped(options: dict[str, Any]) -> None:
    """The heads of NeMo are convolutions of width 1."""
    save_file({"ctc.weight": torch.randn(len(EN), 8, 1)}, "nemo.safetensors")
    with pytest.raises(PlanError, match=r"shape mismatch: ctc\.weight is \(9, 8, 1\)") as error:
        cs.transplant("nemo.safetensors", "ru.yaml", **options)
    asked = "- {reshape: 'ctc.weight', shape: [9, 8]}"
    assert f"Reshape with --operations, as in {asked}. Or use --on-mismatch ctc=init" in error.value.hint
    given = {"vocab": "en.txt:ru.txt", "operations": yaml.safe_load(asked)}
    assert cs.transplant("nemo.safetensors", "ru.yaml", **given).counts["mapped"] == 1


@pytest.mark.costly
@pytest.mark.parametrize(
    ("letters", "options", "message", "hint"),
    [
        (
            "vwxyz",
            {},
            "the vocabularies a/vocab.txt and b/vocab.txt have no token in common",
            "b/vocab.txt begins with",
        ),
        ("abcx", {"token_map": ["q=x"]}, "--token-map q=x: a/vocab.txt has no token 'q'", ""),
        ("abcx", {"token_map": ["d=q"]}, "--token-map d=q: b/vocab.txt has no token 'q'", ""),
        ("abcc", {}, "b/vocab.txt: vocab.txt has tokens twice", ""),
    ],
)
def test_errors_tell_two_lists_with_one_name_apart(letters: str, options: Any, message: str, hint: str) -> None:
    vocab = lists_of_one_name("abcd", letters)
    with pytest.raises(ConfigError) as error:
        cs.transplant("a.safetensors", "b.safetensors", vocab=vocab, **options)
    assert message in error.value.message
    assert hint in error.value.hint


def test_so_do_those_of_a_merge() -> None:
    lists_of_one_name("abcd", "abcc")
    models = ["a.safetensors", "b.safetensors"]
    given = {f"{name}.safetensors": f"{name}/vocab.txt" for name in "ab"}
    with pytest.raises(ConfigError, match=r"^b/vocab\.txt: vocab\.txt has tokens twice: 'c'"):
        cs.merge(models, method="linear", weights=[1, 1], vocab="union", tokens=given)


def test_lists_with_two_names_are_called_by_these() -> None:
    lists_of_one_name("abcd", "vwxyz")
    Path("b/vocab.txt").rename("b/other.txt")
    with pytest.raises(ConfigError, match=r"the vocabularies vocab\.txt and other\.txt have no token in common"):
        cs.transplant("a.safetensors", "b.safetensors", vocab="a/vocab.txt:b/other.txt")
