"""Rows of new tokens are made from those of a donor, as mergekit-tokensurgeon makes them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import matching_pursuit
from fixtures.mergekit_cases import GOLDEN
from fixtures.resizing.cases import VOCABULARIES

from ...helpers.depth import FULL
from ...helpers.small_tokenizers import ENGLISH, GERMAN, SPECIAL, saved_tokenizer, tokenizer
from .test_vocabulary import built, check_kept, tokens_of

transformers = pytest.importorskip("transformers", minversion="5")

FORMS = ("llama", "gpt2", "bert", "t5", "bart", "whisper", "wav2vec2", "clip", "gpt_oss")
"""Networks whose tables and output layers differ: tied or not, with a bias, shared by two parts, of one part, of CTC."""
KINDS = [kind for number, kind in enumerate(VOCABULARIES) if kind in FORMS or number % 9 == 2]

HOME = GOLDEN / "tokensurgeon"
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a network with 340 English tokens."""
    made = tokenizer("bytes", ENGLISH, 340)

    def saved(kind: str) -> Path:
        return saved_tokenizer(made, built(kind, tmp_path_factory.mktemp(kind), 340))

    return saved


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a Llama with 330 German tokens and another width, whose output layer is not tied."""
    folder = tmp_path_factory.mktemp("german")
    torch.manual_seed(1)
    sizes = {"hidden_size": 80, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    fields = {"vocab_size": 330, "pad_token_id": 4, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **fields)).save_pretrained(folder)
    return saved_tokenizer(tokenizer("bytes", GERMAN, 330, [*SPECIAL[1:], "<pad>", "<de>"]), folder)


def changed(folder: Path, to: Path, **tensors: Callable[[torch.Tensor], None]) -> Path:
    """Copy a model, and change tensors of it by functions; ``__`` in a name is a dot."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    for name, change in tensors.items():
        change(weights[name.replace("__", ".")])
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours.double() - theirs.double()).abs().max() < 1e-5 * theirs.abs().max())


def test_rows_are_those_of_mergekit(tmp_path: Path) -> None:
    plan = cs.resize(HOME / "base", tokenizer=HOME / "donor", new_tokens="omp", omp_k=6)
    said = next(note for note in plan.notes if "arXiv 2506.06607" in note)
    assert said.startswith(
        "8 rows of new tokens: each is a weighted sum of at most 6 rows of tokens that the model shares"
    )
    cs.apply(plan, tmp_path / "out")
    ours, theirs = (load_file(path) for path in (tmp_path / "out/model.safetensors", HOME / "expected.safetensors"))
    for key in EMBEDDINGS:
        assert near(ours[key], theirs[key])
        assert ours[key].abs().sum(1).min() > 0
    checked = cs.verify(tmp_path / "out")
    assert checked.ok
    assert not checked.not_compared


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS if FULL else ["gpt2", "bert", "llama", "bart"])
def test_a_network_of_another_type_gets_rows_and_computes_the_same_for_kept_tokens(
    kind: str, english: Callable[[str], Path], german: Path, tmp_path: Path
) -> None:
    source = english(kind)
    cs.apply(cs.resize(source, tokenizer=german, new_tokens="omp", omp_k=20), tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok
    check_kept(source, tmp_path / "out", kind)
    if kind != "bert":
        return
    bias = load_file(tmp_path / "out/model.safetensors")["cls.predictions.bias"]
    old, new = tokens_of(source), tokens_of(german)
    fresh = [number for token, number in new.items() if token not in old]
    assert fresh
    assert not bias[fresh].any()


def sums(source: Path, donor: Path, key: str, their: str, picks: int) -> dict[int, torch.Tensor]:
    """Compute the new rows of a tensor plainly: each greedy choice, then least squares."""
    old, new = tokens_of(source), tokens_of(donor)
    ours, theirs = (
        load_file(one / "model.safetensors")[name].double() for one, name in ((source, key), (donor, their))
    )
    shared = sorted(old.keys() & new.keys(), key=lambda token: new[token])
    atoms, bases = theirs[[new[token] for token in shared]], ours[[old[token] for token in shared]]
    found = {}
    for token in new.keys() - old.keys():
        vector, taken = theirs[new[token]], []
        left = vector
        for _ in range(picks):
            taken.append(int((atoms @ left).abs().argmax()))
            weights = torch.linalg.lstsq(atoms[taken].T, vector[:, None]).solution[:, 0]
            left = vector - weights @ atoms[taken]
        found[new[token]] = weights @ bases[taken]
    return found


@pytest.mark.long
def test_each_embedding_is_made_with_weights_of_its_own(
    english: Callable[[str], Path], german: Path, tmp_path: Path
) -> None:
    source = english("llama")
    cs.apply(cs.resize(source, tokenizer=german, new_tokens="omp", omp_k=12, pad_to=64), tmp_path / "out")
    rows = load_file(tmp_path / "out/model.safetensors")
    for key in EMBEDDINGS:
        wanted = sums(source, german, key, key, 12)
        assert len(wanted) > 40
        for number, row in wanted.items():
            assert near(rows[key][number], row)
    mean = load_file(source / "model.safetensors")[EMBEDDINGS[0]].double().mean(0)
    assert near(rows[EMBEDDINGS[0]][340], mean)  # padding


@pytest.mark.long
def test_a_donor_beside_another_tokeniser_file_is_named(
    english: Callable[[str], Path], german: Path, tmp_path: Path
) -> None:
    shutil.copy(german / "tokenizer.json", tmp_path / "tokenizer.json")
    source = english("gpt2")
    with pytest.raises(
        cs.ConfigError, match=r"needs a donor, a model that has the new tokens: there is no config\.json"
    ):
        cs.resize(source, tokenizer=tmp_path / "tokenizer.json", new_tokens="omp")
    plan = cs.resize(source, tokenizer=tmp_path / "tokenizer.json", new_tokens="omp", donor=german, omp_k=9)
    cs.apply(plan, tmp_path / "first")
    own = cs.resize(source, tokenizer=german / "tokenizer.json", new_tokens="omp", omp_k=9)
    cs.apply(own, tmp_path / "second")
    assert cs.diff(tmp_path / "first", tmp_path / "second", values=True).same


@pytest.mark.long
def test_a_tied_donor_has_one_embedding_for_both(english: Callable[[str], Path], german: Path, tmp_path: Path) -> None:
    donor = tmp_path / "tied"
    model = transformers.LlamaForCausalLM.from_pretrained(german)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(donor)
    shutil.copy(german / "tokenizer.json", donor / "tokenizer.json")
    cs.apply(cs.resize(english("llama"), tokenizer=german, donor=donor, new_tokens="omp", omp_k=5), tmp_path / "out")
    rows = load_file(tmp_path / "out/model.safetensors")
    wanted = sums(english("llama"), german, EMBEDDINGS[1], EMBEDDINGS[0], 5)
    assert all(near(rows[EMBEDDINGS[1]][number], row) for number, row in wanted.items())


def test_costs_say_how_often_the_donor_is_read(english: Callable[[str], Path], german: Path) -> None:
    from ckptsurgeon.engine.apply_settings import MergeContext
    from ckptsurgeon.engine.compute.compute import costs_of

    plan = cs.resize(english("gpt2"), tokenizer=german, new_tokens="omp", omp_k=7)
    assert costs_of(plan, MergeContext()).passes == 2
    step = next(step for step in plan.steps if step.more)
    assert sum(matching_pursuit.pursuit_bytes(step)) < costs_of(plan, MergeContext()).memory_nbytes
    assert matching_pursuit.pursuit_passes(step, 1000) == 1 + 7
    with pytest.raises(cs.PlanError, match="rows of new tokens are sums of many other rows") as error:
        costs_of(plan, MergeContext(memory=17 << 20))
    advised = int(re.findall(r"--memory (\d+)B", error.value.hint)[0])
    found = costs_of(plan, MergeContext(memory=advised))
    assert (found.passes, found.memory_nbytes) == (1 + 7, advised)


@pytest.mark.long
def test_rows_do_not_depend_on_memory_or_blocks(
    english: Callable[[str], Path], german: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(name: str) -> bytes:
        cs.apply(cs.resize(english("gpt2"), tokenizer=german, new_tokens="omp", omp_k=7), tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = written("first")
    monkeypatch.setattr(matching_pursuit, "BAND_ROWS", 13)
    monkeypatch.setattr("ckptsurgeon.engine.compute.one_block.BLOCK_BYTES", 3000)
    monkeypatch.setattr(
        matching_pursuit, "pursuit_bytes", lambda step, of=matching_pursuit.pursuit_bytes: (of(step)[0], 1 << 40)
    )  # the donor's rows are read again for each step
    assert written("second") == first


@pytest.mark.long
def test_a_saved_plan_and_a_recipe_make_the_same_rows(
    english: Callable[[str], Path], german: Path, tmp_path: Path
) -> None:
    source = english("llama")
    plan = cs.resize(source, tokenizer=german, new_tokens="omp", omp_k=8, set={"hidden_size": 128})
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, tmp_path / "first")
    cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "second")
    assert cs.diff(tmp_path / "first", tmp_path / "second", values=True).same
    carried = json.loads(cs.open_checkpoint(tmp_path / "first").recipe or "")
    assert carried["arguments"]["new_tokens"] == "omp"
    assert carried["arguments"]["omp_k"] == 8
    paths = {"source": str(source), "tokenizer": str(german), "output": str(tmp_path / "third")}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump({"verb": "resize", **carried["arguments"], **paths}))
    cs.apply(tmp_path / "again.yaml")
    assert cs.diff(tmp_path / "first", tmp_path / "third", values=True).same
    assert cs.verify(tmp_path / "third", plan=tmp_path / "plan.json").ok


@pytest.mark.long
def test_a_changed_row_fails_the_check(tmp_path: Path) -> None:
    cs.apply(
        cs.resize(HOME / "base", tokenizer=HOME / "donor", new_tokens="omp", omp_k=6), tmp_path / "out.safetensors"
    )
    data = bytearray((tmp_path / "out.safetensors").read_bytes())
    key = EMBEDDINGS[0]
    info = cs.open_checkpoint(tmp_path / "out.safetensors")[key]
    assert info.storage is not None
    values = np.frombuffer(data, "f4", 16, info.storage.offset + 38 * 64)  # of a token that is new
    assert values.flags.writeable
    values *= 1.01
    (tmp_path / "out.safetensors").write_bytes(data)
    assert not cs.verify(tmp_path / "out.safetensors").ok


@pytest.mark.long
def test_a_donor_in_a_recipe_is_relative_to_it(english: Callable[[str], Path], german: Path, tmp_path: Path) -> None:
    shutil.copytree(german, tmp_path / "donor")
    shutil.copytree(english("gpt2"), tmp_path / "model")
    (tmp_path / "recipes").mkdir()
    text = (
        "verb: resize\nsource: ../model\ntokenizer: ../donor/tokenizer.json\ndonor: ../donor\nnew_tokens: omp\n"
        "omp_k: 4\noutput: ../out/\n"
    )
    (tmp_path / "recipes/resize.yaml").write_text(text)
    cs.apply(tmp_path / "recipes/resize.yaml")
    assert cs.verify(tmp_path / "out").ok


# What cannot be done.


@pytest.mark.long
def test_a_donor_without_the_tokens_is_an_error(english: Callable[[str], Path], german: Path, tmp_path: Path) -> None:
    source = english("gpt2")
    with pytest.raises(cs.ConfigError, match=r"neither the model nor the donor .* has 5\d tokens of the new tokeniser"):
        cs.resize(source, tokenizer=german, donor=english("llama"), new_tokens="omp", omp_k=4)
    with pytest.raises(cs.CheckpointError, match="nowhere"):
        cs.resize(source, tokenizer=german, donor=tmp_path / "nowhere", new_tokens="omp")
    bare = changed(german, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(cs.ConfigError, match="has no list of tokens"):
        cs.resize(source, tokenizer=german, donor=bare, new_tokens="omp")


def test_too_few_shared_tokens_are_an_error_that_says_how_many_there_are(
    english: Callable[[str], Path], german: Path
) -> None:
    with pytest.raises(cs.PlanError, match="share only 275 tokens") as caught:
        cs.resize(english("gpt2"), tokenizer=german, new_tokens="omp", omp_k=300)
    assert "275" in caught.value.hint
    with pytest.raises(cs.ConfigError, match="0 is not a number above 0"):
        cs.resize(english("gpt2"), tokenizer=german, new_tokens="omp", omp_k=0)


def fill(value: float, rows: Any) -> Callable[[torch.Tensor], None]:
    return lambda tensor: tensor.__setitem__(rows, value)


@pytest.mark.costly
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_an_error_that_names_the_tokens(
    value: float, english: Callable[[str], Path], german: Path, tmp_path: Path
) -> None:
    source, new = english("llama"), tokens_of(german)
    donor = changed(german, tmp_path / "donor", lm_head__weight=fill(value, new["<de>"]))
    with pytest.raises(cs.PlanError, match=r"lm_head\.weight of .*donor has NaN or infinite values in 1 row.*'<de>'"):
        cs.resize(source, tokenizer=donor, new_tokens="omp", omp_k=4)
    base = changed(source, tmp_path / "base", model__embed_tokens__weight=fill(value, tokens_of(source)["<s>"]))
    with pytest.raises(
        cs.PlanError, match=r"embed_tokens\.weight of .*base has NaN or infinite values in 1 row.*'<s>'"
    ):
        cs.resize(base, tokenizer=german, new_tokens="omp", omp_k=4)
    gone = next(token for token in tokens_of(source) if token not in new)  # its row makes no other
    base = changed(source, tmp_path / "gone", model__embed_tokens__weight=fill(value, tokens_of(source)[gone]))
    cs.resize(base, tokenizer=german, new_tokens="omp", omp_k=4)


@pytest.mark.long
def test_zero_rows_are_said(english: Callable[[str], Path], german: Path, tmp_path: Path) -> None:
    source, new = english("llama"), tokens_of(german)
    donor = changed(german, tmp_path / "donor", model__embed_tokens__weight=fill(0.0, new["<de>"]))
    plan = cs.resize(source, tokenizer=donor, new_tokens="omp", omp_k=4)
    said = "1 new token with a zero row in model.embed_tokens.weight of the donor gets a zero row: '<de>'"
    assert said in plan.notes
    cs.apply(plan, tmp_path / "out")
    rows = load_file(tmp_path / "out/model.safetensors")
    assert not rows[EMBEDDINGS[0]][new["<de>"]].any()
    assert rows[EMBEDDINGS[1]][new["<de>"]].any()
    shared = [new[token] for token in tokens_of(source) if token in new]
    few = changed(german, tmp_path / "few", lm_head__weight=fill(0.0, shared[3:]))
    with pytest.raises(
        cs.PlanError, match=r"only 3 rows of shared tokens in lm_head\.weight of the donor are not zero"
    ):
        cs.resize(source, tokenizer=few, new_tokens="omp", omp_k=4)
    cs.resize(source, tokenizer=few, new_tokens="omp", omp_k=3)


@pytest.mark.long
def test_a_quantised_donor_is_an_error(english: Callable[[str], Path], german: Path, tmp_path: Path) -> None:
    donor = changed(german, tmp_path / "donor")
    fields = json.loads((donor / "config.json").read_text())
    (donor / "config.json").write_text(
        json.dumps({**fields, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(cs.ConfigError, match="the donor: .*weights are quantised"):
        cs.resize(english("llama"), tokenizer=donor, new_tokens="omp", omp_k=4)
    (donor / "config.json").write_text(json.dumps(fields))
    weights = load_file(donor / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.int8)
    save_file(weights, donor / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        cs.PlanError,
        match=r"the tensor lm_head\.weight of the donor .* is int8 \(330, 80\); it must be floats of shape",
    ):
        cs.resize(english("llama"), tokenizer=donor, new_tokens="omp", omp_k=4)


@pytest.mark.long
def test_options_that_have_no_effect_are_errors(english: Callable[[str], Path], german: Path, tmp_path: Path) -> None:
    source = english("llama")
    for options in ({"donor": german}, {"omp_k": 4}):
        with pytest.raises(cs.ConfigError, match=r"only for new_tokens=\"omp\"|only for --new-tokens omp"):
            cs.resize(source, tokenizer=german, new_tokens="mean", **options)
        with pytest.raises(cs.ConfigError, match="omp"):
            cs.resize(source, set={"num_hidden_layers": 1}, layers="first", **options)
    with pytest.raises(cs.ConfigError, match="needs a new tokeniser"):
        cs.resize(source, set={"vocab_size": 350}, new_tokens="omp")
    (tmp_path / "text.txt").write_text("the sun\n")
    with pytest.raises(cs.ConfigError, match="adds no tokens"):
        cs.resize(source, trim=tmp_path / "text.txt", new_tokens="omp")
    known = tokens_of(source)
    fewer = {token: number for number, token in enumerate(sorted(known, key=lambda one: known[one])[:-9])}
    (tmp_path / "vocab.json").write_text(json.dumps(fewer))
    with pytest.raises(cs.ConfigError, match="has no new token"):
        cs.resize(source, tokenizer=tmp_path / "vocab.json", donor=source, new_tokens="omp", omp_k=4)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("picks", 0), ("picks", "many"), ("picks", True), ("size", 3), ("rows", [0, 1]), ("rows", None), ("size", None),
        ("rows", [-1] * 40), ("rows", [[0]] * 40),
    ],
)  # fmt: skip
def test_a_plan_with_another_donor_is_malformed(field: str, value: Any, tmp_path: Path) -> None:
    plan = cs.resize(HOME / "base", tokenizer=HOME / "donor", new_tokens="omp", omp_k=6).to_json()
    plan["vocabulary"]["donor"][field] = value
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(cs.ConfigError, match="the plan cannot be read"):
        cs.load_plan(tmp_path / "plan.json")


def test_a_plan_without_its_donor_is_an_error(tmp_path: Path) -> None:
    plan = cs.resize(HOME / "base", tokenizer=HOME / "donor", new_tokens="omp", omp_k=6).to_json()
    text = json.dumps({**plan, "vocabulary": {key: one for key, one in plan["vocabulary"].items() if key != "donor"}})
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(cs.ConfigError, match="but there is no field donor"):
        cs.load_plan(tmp_path / "plan.json")
    for step in plan["steps"]:
        if step.get("more"):
            step["more"][0]["shape"][0] += 1
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(cs.PlanError, match="the operation map cannot make"):
        cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "out")


def test_the_command(english: Callable[[str], Path], german: Path, tmp_path: Path, ckpt: Any) -> None:
    out = str(tmp_path / "out")
    asked = ["--tokenizer", str(german), "--new-tokens", "omp", "--omp-k", "5", "--donor", str(german)]
    done = ckpt("resize", str(english("gpt2")), *asked, "--prove", "-o", f"{out}/")
    assert done.code == 0, done.err
    assert "\nSAME " in done.out
    assert "at most 5 rows of tokens that" in " ".join((done.out + done.err).split())
    assert ckpt("verify", out).code == 0
