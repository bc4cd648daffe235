"""Diff: what differs is found and measured, whatever the formats; what moved is found by its content."""

from __future__ import annotations

import json
import math
import os
import shlex
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.compare import bytewise
from ckptsurgeon.analysis.compare import bytewise as records
from ckptsurgeon.analysis.compare.renames import _without_collisions
from ckptsurgeon.util.notes import Note


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        **{f"layers.{i}.{name}": torch.randn(4, 3) for i in range(3) for name in ("attn.w", "ff.w")},
        "embed": torch.randn(5, 4), "steps": torch.tensor(7), "norm": torch.ones(4), "bias": torch.zeros(4),
    }  # fmt: skip


def test_the_same_tensors_are_the_same_whatever_the_file(state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}, "a.pth")
    torch.save({k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in state.items()}, "strided.pth")
    torch.save(state, "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, "b.safetensors")
    cs.apply(cs.convert("b.safetensors"), "shards", max_shard_size="100B")
    for other in ("b.safetensors", "strided.pth", "old.pth", "shards", "a.pth"):
        found = cs.diff("a.pth", other, values=True)
        assert not found.differs, other
        assert found.identical == len(state)


def test_every_kind_of_difference_is_told(state: dict[str, torch.Tensor]) -> None:
    save_file(state, "a.safetensors")
    other = {key: value.clone() for key, value in state.items()}
    other["embed"][2, 1] += 0.5
    other["norm"] = other["norm"].half()
    other["bias"] = torch.zeros(6)
    other["steps"] += 1
    del other["layers.0.ff.w"]
    other["layers.9.ff.w"], other["layers.10.ff.w"] = torch.ones(1), torch.ones(1)
    save_file(other, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", values=True)
    assert found.differs
    assert found.removed == ("layers.0.ff.w",)
    assert found.added == ("layers.9.ff.w", "layers.10.ff.w")
    assert [pair.key for pair in found.reshaped] == ["bias"]
    assert [(pair.key, pair.numbers and pair.numbers.differing) for pair in found.retyped] == [("norm", 0)]
    numbers = {pair.key: pair.numbers for pair in found.changed}
    assert set(numbers) == {"embed", "steps"}
    a, b = state["embed"].double().flatten(), other["embed"].double().flatten()
    one = numbers["embed"]
    assert one is not None
    assert one.differing == 1
    assert one.max_abs == pytest.approx((a - b).abs().max().item())
    assert one.relative == pytest.approx(((a - b).norm() / a.norm()).item())
    assert one.cosine == pytest.approx(torch.nn.functional.cosine_similarity(a, b, dim=0).item())
    assert found.identical == 5
    headers = cs.diff("a.safetensors", "b.safetensors")
    assert not headers.changed
    assert headers.identical == 7


@pytest.mark.parametrize(
    ("rtol", "atol", "close"), [(0, 0.02, True), (0.02, 0, True), (0, 0.001, False), (0, 0, False)]
)
def test_a_tolerance_is_numpy_s(rtol: float, atol: float, close: bool) -> None:
    save_file({"w": torch.tensor([1.0, 2.0, float("nan")])}, "a.safetensors")
    save_file({"w": torch.tensor([1.01, 2.0, float("nan")])}, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", values=True, rtol=rtol, atol=atol)
    assert found.differs != close
    assert len(found.close) == close


def test_nan_counts_where_only_one_has_it() -> None:
    save_file({"w": torch.tensor([1.0, float("nan"), float("nan"), float("inf")])}, "a.safetensors")
    save_file({"w": torch.tensor([1.0, float("nan"), 3.0, 5.0])}, "b.safetensors")
    (pair,) = cs.diff("a.safetensors", "b.safetensors", values=True).changed
    assert pair.numbers is not None
    assert (pair.numbers.nan, pair.numbers.differing, pair.numbers.max_abs) == (1, 2, 0.0)
    assert pair.numbers.cosine == pytest.approx(1.0)


def test_long_tensors_are_compared_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytewise, "CHUNK", 1000)
    monkeypatch.setattr(bytewise, "BLOCK", 300)
    tensors = {f"t{i}": torch.randn(400 + i) for i in range(7)}
    save_file(tensors, "a.safetensors")
    tensors["t3"][-1] += 1
    tensors["t5"][0] += 1
    save_file(tensors, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", values=True)
    assert [pair.key for pair in found.changed] == ["t3", "t5"]


def test_after_an_error_the_ranges_that_wait_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second range is held until the pool is shut down: were the queue kept, all would be compared."""
    shut, compared = threading.Event(), list[str]()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            shut.set()
            super().shutdown(wait=wait)

    def crc_if_equal(one: Any, *_: Any) -> int:
        compared.append(one.key)
        if one.key == "t0":
            raise cs.SourceError("gone")
        return shut.wait(60)

    monkeypatch.setattr(bytewise, "CHUNK", 4)
    monkeypatch.setattr(bytewise, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(bytewise, "_crc_if_equal", crc_if_equal)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({f"t{i}": torch.zeros(1) for i in range(50)}, name)
    with pytest.raises(cs.SourceError, match="gone"):
        cs.diff("a.safetensors", "b.safetensors", values=True)
    assert len(compared) < 5


def test_the_same_bytes_of_one_file_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.randn(9)}, "a.safetensors")
    os.link("a.safetensors", "b.safetensors")
    monkeypatch.setattr(bytewise, "_crc_if_equal", lambda *_: pytest.fail("it was read"))
    assert cs.diff("a.safetensors", "b.safetensors", values=True).identical == 1


def damaged(path: str, tensor: torch.Tensor) -> None:
    """Flip a bit of a tensor's bytes in a file; the checksums that its container recorded stay."""
    raw, where = bytearray(Path(path).read_bytes()), tensor.numpy().tobytes()
    raw[raw.index(where) + len(where) - 1] ^= 1
    Path(path).write_bytes(raw)


WHOLE = torch.arange(1.0, 4001.0).reshape(40, 100)


@pytest.mark.parametrize(
    "kept",
    [WHOLE, WHOLE.t(), WHOLE[1:], {"a": WHOLE, "b": WHOLE}],
    ids=["whole", "strided", "part", "tied"],
)
@pytest.mark.parametrize("both", [True, False])
def test_a_record_that_fails_its_checksum_is_an_error(kept: Any, both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytewise, "CHUNK", 6000)
    monkeypatch.setattr(bytewise, "BLOCK", 2000)
    for name in ("a.pth", "b.pth"):
        torch.save(kept if isinstance(kept, dict) else {"w": kept}, name)
    assert not cs.diff("a.pth", "b.pth", values=True).differs
    damaged("b.pth", WHOLE)
    if both:
        damaged("a.pth", WHOLE)
    with pytest.raises(cs.FormatError, match=r"\.pth: .*data/0 does not match its checksum"):
        cs.diff("a.pth", "b.pth", values=True)


def test_a_damaged_record_is_found_beside_a_file_without_checksums() -> None:
    torch.save({"w": WHOLE}, "a.pth")
    damaged("a.pth", WHOLE)
    save_file({"w": torch.load("a.pth")["w"]}, "b.safetensors")
    for pair in (("a.pth", "b.safetensors"), ("b.safetensors", "a.pth")):
        with pytest.raises(cs.FormatError, match="checksum"):
            cs.diff(*pair, values=True)


def test_a_damaged_record_is_not_renamed() -> None:
    for name, key in (("a.pth", "w"), ("b.pth", "v")):
        torch.save({key: WHOLE}, name)
        damaged(name, WHOLE)
    with pytest.raises(cs.FormatError, match="checksum"):
        cs.diff("a.pth", "b.pth", renames=True)


def test_a_record_that_many_tensors_share_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save({f"w{i}": row for i, row in enumerate(WHOLE)}, name)
    checked: list[Any] = []
    monkeypatch.setattr(records, "check_storage", lambda *record: checked.append(record))
    assert not cs.diff("a.pth", "b.pth", values=True).differs
    assert len(checked) == 2


def test_what_cannot_be_compared_is_not_known_to_be_the_same(ckpt: Any) -> None:
    torch.save({"s": torch.eye(3).to_sparse(), "w": torch.ones(1)}, "a.pth")
    torch.save({"s": 2 * torch.eye(3).to_sparse(), "w": torch.ones(1)}, "b.pth")
    found = cs.diff("a.pth", "b.pth", values=True)
    assert list(found.not_compared) == ["s"]
    assert (found.identical, found.differs) == (1, True)
    done = ckpt("diff", "a.pth", "b.pth", "--values")
    assert done.code == 1
    assert "1 tensor identical byte for byte, 1 not compared" in done.out
    assert "the same" not in done.out
    assert not cs.diff("a.pth", "b.pth").differs


@pytest.mark.parametrize("verb", [("diff", "a.pth"), ("diff", "a.pth", "a.pth"), ("inspect",)])
def test_patterns_that_leave_nothing_are_an_error(verb: tuple[str, ...], ckpt: Any) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, "a.pth")
    done = ckpt(*verb, "a.pth", "--exclude", "a", "--exclude", "b")
    assert (done.code, "nothing is left: all 2" in done.err) == (4, True), done


def test_what_cannot_be_compared_and_is_of_another_type_stays_retyped() -> None:
    torch.save({"s": torch.eye(3).to_sparse()}, "a.pth")
    torch.save({"s": torch.eye(3).half().to_sparse()}, "b.pth")
    found = cs.diff("a.pth", "b.pth", values=True)
    assert [pair.key for pair in found.retyped] == ["s"]
    assert not found.not_compared


def test_complex_and_eight_bit_values_are_measured() -> None:
    first = {"c": torch.tensor([1 + 1j, 2 - 1j]), "f": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn)}
    torch.save(first, "a.pth")
    torch.save({"c": torch.tensor([1 + 1j, 2 + 0j]), "f": torch.tensor([1.0, 4.0]).to(torch.float8_e4m3fn)}, "b.pth")
    found = {pair.key: pair.numbers for pair in cs.diff("a.pth", "b.pth", values=True).changed}
    assert {key: numbers and numbers.max_abs for key, numbers in found.items()} == {"c": 1.0, "f": 2.0}


# What only moved.


def test_the_rules_of_renames_make_the_difference_empty(state: dict[str, torch.Tensor]) -> None:
    save_file(state, "a.safetensors")
    moved = {
        key.replace("layers.", "blocks.").replace("ff", "mlp").replace("embed", "tok"): v for key, v in state.items()
    }
    moved["more"] = torch.ones(3)
    save_file(moved, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert len(found.renamed) == 7
    assert found.added == ("more",)
    assert not found.removed
    assert sorted(found.rules) == ["embed=tok", "layers.{n}.attn=blocks.{n}.attn", "layers.{n}.ff=blocks.{n}.mlp"]
    cs.apply(cs.rename("a.safetensors", map=found.rules), "c.safetensors")
    again = cs.diff("c.safetensors", "b.safetensors", values=True)
    assert not again.removed
    assert not again.changed
    assert again.added == ("more",)


@pytest.mark.parametrize("wrapped", ["a", "b"])
def test_the_rules_printed_for_a_wrapped_file_apply_to_it_as_printed(wrapped: str, ckpt: Any) -> None:
    tensors = {name: torch.randn(3) for name in ("w", "b")}
    for at, module in (("a", "enc"), ("b", "net")):
        prefix = f"module.{module}" if wrapped == at else module
        torch.save({f"{prefix}.{key}": value for key, value in tensors.items()}, f"{at}.pth")
    printed = ckpt("diff", "a.pth", "b.pth", "--renames").out.partition("  rules\n")[2]
    assert shlex.split(printed) == [*(["--unwrap"] if wrapped == "a" else []), "--map", "enc=net"]
    assert json.loads(ckpt("diff", "a.pth", "b.pth", "--renames", "--json").out)["unwrap"] is (wrapped == "a")
    assert ckpt("rename", "a.pth", *shlex.split(printed), "-o", "c.pth").code == 0
    assert not cs.diff("c.pth", "b.pth", values=True).differs


def test_tensors_of_the_same_content_go_with_the_nearest_name() -> None:
    zeros = {f"enc.{i}.{name}": torch.zeros(3) for i in range(3) for name in ("b1", "b2")}
    save_file(zeros, "a.safetensors")
    save_file({key.replace("enc", "net"): value for key, value in zeros.items()}, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert found.rules == ("enc=net",)


def layers(*order: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    state = dict(more)
    for place, number in enumerate(order):
        torch.manual_seed(number)
        state |= {f"layers.{place}.{name}.weight": torch.randn(4, 4) for name in ("up", "down")}
        state[f"layers.{place}.norm.weight"] = torch.ones(4)
    return state


def test_swapped_layers_are_renamed_and_the_rules_swap_them_back(ckpt: Any) -> None:
    torch.save(layers(0, 1, 2, 3), "a.pth")
    torch.save(layers(0, 2, 1, 3), "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert found.differs
    assert found.renamed == {
        f"layers.{one}.{name}.weight": f"layers.{other}.{name}.weight"
        for one, other in ((1, 2), (2, 1))
        for name in ("down", "up")
    }
    assert (found.changed, found.added, found.removed, found.values) == ((), (), (), True)
    cs.apply(cs.rename("a.pth", map=found.rules), "c.pth")
    assert not cs.diff("c.pth", "b.pth", values=True).differs
    out = ckpt("diff", "a.pth", "b.pth", "--renames")
    assert out.code == 1
    assert "layers.{1,2}.up.weight    layers.{2,1}.up.weight  x 2" in out.out


def codes(*order: int) -> dict[str, torch.Tensor]:
    made = {}
    for place, number in enumerate(order):
        torch.manual_seed(number)
        made[f"layers.{place}.q.weight"] = torch.randn(8, 8).to(torch.float8_e4m3fn)
        made[f"layers.{place}.q.weight_scale_inv"] = torch.rand(1, 1) + 0.5
    return made


def test_swapped_layers_of_codes_are_renamed_with_their_scales() -> None:
    save_file(codes(0, 1, 2), "a.safetensors")
    save_file(codes(0, 2, 1), "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert (len(found.renamed), found.changed, found.decoded) == (4, (), ())
    changed = {**codes(0, 2, 1), "layers.1.q.weight_scale_inv": torch.ones(1, 1)}
    save_file(changed, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert [pair.key for pair in found.decoded] == ["layers.1.q.weight", "layers.2.q.weight"]


def test_an_inserted_layer_moves_the_next_ones() -> None:
    torch.save(layers(0, 1, 2), "a.pth")
    torch.save(layers(0, 7, 1, 2), "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert {key: new for key, new in found.renamed.items() if ".up." in key} == {
        "layers.1.up.weight": "layers.2.up.weight",
        "layers.2.up.weight": "layers.3.up.weight",
    }
    assert [key for key in found.added if "norm" not in key] == ["layers.1.down.weight", "layers.1.up.weight"]
    assert (found.changed, found.removed) == ((), ())


@pytest.mark.costly
@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5), (0, 1, 4, 5), (2, 3, 4)])
def test_removed_layers_move_the_next_ones_and_the_rules_give_the_second(order: tuple[int, ...], ckpt: Any) -> None:
    torch.save(layers(0, 1, 2, 3, 4, 5), "a.pth")
    torch.save(layers(*order), "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert {key: new for key, new in found.renamed.items() if ".up." in key} == {
        f"layers.{old}.up.weight": f"layers.{new}.up.weight" for new, old in enumerate(order) if old != new
    }
    lost = sorted({*range(6)} - {*order})
    assert [key for key in found.removed if ".up." in key] == [f"layers.{number}.up.weight" for number in lost]
    assert (found.changed, found.added) == ((), ())
    assert any(": filter out layers." in note for note in found.notes)
    cs.apply(cs.filter("a.pth", exclude=list(found.removed)), "kept.pth")
    cs.apply(cs.rename("kept.pth", map=found.rules), "c.pth")
    assert not cs.diff("c.pth", "b.pth", values=True).differs
    told = [part for rule in found.rules for part in ("--map", rule)]
    assert ckpt("rename", "a.pth", *told, "-o", "d.pth").code not in {0, 1}


def test_a_removed_layer_of_codes_moves_the_next_ones() -> None:
    save_file(codes(0, 1, 2), "a.safetensors")
    save_file(codes(1, 2), "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert (len(found.renamed), found.changed, found.decoded) == (4, (), ())
    assert found.removed == ("layers.0.q.weight", "layers.0.q.weight_scale_inv")


def test_a_tensor_of_another_shape_that_was_replaced_is_removed() -> None:
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(3, 2)}, "a.pth")
    torch.save({"a": torch.ones(3, 2)}, "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert (found.renamed, found.removed, found.reshaped) == ({"b": "a"}, ("a",), ())
    assert "the rules reuse the names of 1 removed tensor: filter out a before you apply the rules" in found.notes


@pytest.mark.long
def test_the_time_for_a_chain_of_renames_grows_with_its_length() -> None:
    """With a search through all pairs for each link, this takes an hour."""
    number = 100_000
    pairs = {f"l.{i}": f"l.{i + 1}" for i in range(number)}
    assert _without_collisions(pairs, {f"l.{i}" for i in range(number + 1)}) == {}
    assert _without_collisions(pairs, {f"l.{i}" for i in range(1, number + 1)}) == pairs


def test_what_was_copied_over_or_trained_is_changed_not_renamed() -> None:
    torch.save(layers(0, 1, 2, w=torch.zeros(9), v=torch.ones(9)), "a.pth")
    torch.save(layers(0, 1, 1, w=torch.ones(9) * 2, v=torch.zeros(9)), "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert not found.renamed
    assert [pair.key for pair in found.changed] == ["w", "v", "layers.2.up.weight", "layers.2.down.weight"]


def test_exchanged_tensors_of_different_shapes_are_renamed() -> None:
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(3, 2), "c": torch.ones(4)}, "a.pth")
    torch.save({"a": torch.ones(3, 2), "b": torch.ones(2, 3), "c": torch.ones(4)}, "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert (found.renamed, found.reshaped) == ({"a": "b", "b": "a"}, ())


def test_renames_that_no_rule_can_spell_are_counted(ckpt: Any) -> None:
    torch.save({"re:(": torch.ones(3), "x": torch.ones(4), "": torch.ones(5)}, "a.pth")
    torch.save({"a..b": torch.ones(3), "y": torch.ones(4), "z": torch.ones(5)}, "b.pth")
    found = cs.diff("a.pth", "b.pth", renames=True)
    assert found.renamed == {"re:(": "a..b", "x": "y", "": "z"}
    assert set(found.rules) == {"x=y", "re:=z"}
    assert "no rule can produce 1 of the new names" in found.notes
    assert ckpt("diff", "a.pth", "b.pth", "--renames").code == 1


def test_other_content_is_no_rename() -> None:
    save_file({"a": torch.zeros(3), "x": torch.ones(2)}, "a.safetensors")
    save_file({"b": torch.ones(3), "y": torch.ones(2, dtype=torch.float16)}, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert not found.renamed
    assert found.differs


# The command.


def two_folders(state: dict[str, torch.Tensor], weights: str = "model.safetensors") -> None:
    for name, theta in (("a", 1e4), ("b", 5e5)):
        Path(name).mkdir()
        save_file(state, f"{name}/{weights}")
        Path(name, "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": theta}))
        Path(name, "generation_config.json").write_text(json.dumps({"top_k": theta}))
        Path(name, "chat_template.jinja").write_text(name)


def said_of(first: str, second: str) -> tuple[str, ...]:
    return (
        "equal weights compute different results, because the config.json files differ: rope_theta is 10000.0 in "
        f"{first}, 500000.0 in {second}",
        f"the chat templates of {first} and {second} differ, first at character 0",
        "the models generate text differently, according to generation_config.json: top_k is 10000.0 in "
        f"{first}, 500000.0 in {second}",
    )


def test_two_model_folders_are_compared_by_their_files_too(state: dict[str, torch.Tensor], ckpt: Any) -> None:
    two_folders(state)
    assert cs.diff("a", "b").notes == said_of("a", "b")
    assert "rope_theta" in ckpt("diff", "a", "b").err


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize(
    "weights", ["model.safetensors", "adapter_model.safetensors", "model-00001-of-00002.safetensors"]
)
def test_files_in_model_folders_are_compared_by_the_files_beside_them(
    weights: str, large: bool, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptsurgeon.api.diff.LARGE", 0 if large else 1 << 40)
    two_folders(state, weights)
    first, second = f"a/{weights}", f"b/{weights}"
    assert cs.diff(first, second).notes[-3:] == said_of(first, second)
    assert not [note for note in cs.diff(first, first).notes if "differ" in note]


@pytest.mark.parametrize("large", [True, False])
def test_contradictions_in_one_folder_are_noted_for_files_of_every_size(
    large: bool, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptsurgeon.api.diff.LARGE", 0 if large else 1 << 40)
    for name, number in (("a", 2), ("b", 3)):
        Path(name).mkdir()
        save_file(
            {f"model.layers.{at}.mlp.up_proj.weight": torch.zeros(4, 2) for at in range(2)}, f"{name}/model.safetensors"
        )
        Path(name, "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": number}))
    for order in (("a", "b"), ("b", "a")):
        notes = cs.diff(*(f"{one}/model.safetensors" for one in order)).notes
        (note,) = [one for one in notes if "num_hidden_layers" in one]
        assert note.startswith(
            "b/model.safetensors: config.json says 3 (num_hidden_layers), but model.layers has 2 layers"
        )
        assert isinstance(note, Note)


def test_folders_files_and_open_checkpoints_are_compared_with_each_other(state: dict[str, torch.Tensor]) -> None:
    two_folders(state)
    assert cs.diff("a/model.safetensors", "b").notes == said_of("a/model.safetensors", "b")
    assert not cs.diff("a/model.safetensors", "a").notes
    with cs.open_checkpoint("a") as a, cs.open_checkpoint("b") as b:
        assert cs.diff(a, b).notes == said_of("a", "b")
    assert not cs.diff("a", state).notes


def test_files_of_other_names_are_not_compared_by_the_files_beside_them(state: dict[str, torch.Tensor]) -> None:
    two_folders(state, "optimizer.safetensors")
    assert not cs.diff("a/optimizer.safetensors", "b/optimizer.safetensors").notes
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("a/optimizer.safetensors", "a/model.safetensors")
    (note,) = cs.diff("a.zip/a/model.safetensors", "b/optimizer.safetensors").notes
    assert "read from the archive" in note


def test_the_command_says_it_by_its_exit_code(state: dict[str, torch.Tensor], ckpt: Any) -> None:
    save_file(state, "a.safetensors")
    torch.save({f"module.{k}": v for k, v in state.items()}, "same.pth")
    assert ckpt("diff", "a.safetensors", "same.pth", "--values").code == 0
    state["norm"] += 1e-3
    save_file(state, "b.safetensors")
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--values")
    assert done.code == 1
    assert "norm" in done.out
    assert ckpt("diff", "a.safetensors", "b.safetensors", "--values", "--rtol", "1e-2").code == 0
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--values", "--json")
    data = json.loads(done.out)
    assert done.code == 1
    assert [row["key"] for row in data["changed"]] == ["norm"]
    assert math.isclose(data["changed"][0]["max_abs"], 1e-3, rel_tol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["a.safetensors", "nothing.pth"], 3, "nothing.pth does not exist"),
        (["a.safetensors", "a.safetensors", "--rtol", "1"], 2, "need --values"),
        (["a.safetensors", "a.safetensors", "--values", "--atol", "-1"], 2, "is not a valid tolerance"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], code: int, why: str, ckpt: Any) -> None:
    save_file({"a": torch.ones(1)}, "a.safetensors")
    done = ckpt("diff", *arguments)
    assert (done.code, why in done.err) == (code, True)


def test_layers_of_which_the_same_is_said_are_one_line(ckpt: Any) -> None:
    save_file({f"l.{i}.w": torch.zeros(2) for i in range(12)} | {"x": torch.zeros(1)}, "a.safetensors")
    save_file({f"m.{i}.w": torch.zeros(2) for i in range(12)} | {"x": torch.zeros(1)}, "b.safetensors")
    out = ckpt("diff", "a.safetensors", "b.safetensors").out
    assert "l.{0..11}.w" in out
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["removed", "added", "1"]
    assert "l.{0..11}.w  m.{0..11}.w" in ckpt("diff", "a.safetensors", "b.safetensors", "--renames").out


def test_renamed_layers_are_one_line_whatever_is_in_their_names(ckpt: Any) -> None:
    for name, layer in (("a.safetensors", "layer ({}).w"), ("b.safetensors", "my block ({}).w")):
        save_file({layer.format(i): torch.full((2,), float(i)) for i in range(12)}, name)
    out = ckpt("diff", "a.safetensors", "b.safetensors", "--renames").out
    assert "layer ({0..11}).w  my block ({0..11}).w  x 12" in out


@pytest.mark.long
def test_many_tensors_of_one_content_are_paired_by_their_names() -> None:
    """Pairing by every two of them would not end."""
    many = {f"layers.{i}.{j}.w": torch.zeros(1) for i in range(100) for j in range(60)}
    save_file(many, "a.safetensors")
    save_file({key.replace("layers", "blocks"): value for key, value in many.items()}, "b.safetensors")
    found = cs.diff("a.safetensors", "b.safetensors", renames=True)
    assert found.rules == ("layers=blocks",)
    assert found.added == found.removed == ()


def test_layers_are_one_row_with_the_furthest_apart_of_them_and_branches_are_counted(ckpt: Any) -> None:
    first = {f"enc.{i}.{j}.w": torch.ones(4) for i in range(12) for j in range(3)} | {"ctc.w": torch.ones(3)}
    second = {key: value * (1 + 0.01 * n) if n else value for n, (key, value) in enumerate(first.items())}
    save_file(first | {"gone.w": torch.ones(1)}, "a.safetensors")
    save_file(second | {f"new{i}": torch.ones(i + 1) for i in range(3)} | {"more": torch.ones(1)}, "b.safetensors")
    lines = ckpt("diff", "a.safetensors", "b.safetensors", "--values").out.splitlines()
    rows = [line.split()[-10:] for line in lines]
    assert ["enc.{0..11}.2.w", "x", "12", "max", "0.35", "rel", "0.35", "cos", "1.00000"] in rows
    assert ["enc.{1..11}.0.w", "x", "11", "max", "0.33", "rel", "0.33", "cos", "1.00000"] in rows
    table = [line.split() for line in lines]
    assert ["identical", "removed", "added", "changed"] in table
    assert ["enc", "1", "-", "-", "35"] in table
    assert ["ctc", "-", "-", "-", "1"] in table
    every = ckpt("diff", "a.safetensors", "b.safetensors", "--values", "-v").out
    assert sum("enc." in line and "max" in line for line in every.splitlines()) == 35


def test_only_keys_that_are_chosen_are_compared(ckpt: Any) -> None:
    save_file({"a.w": torch.zeros(2), "b.w": torch.zeros(2), "c": torch.zeros(1)}, "a.safetensors")
    save_file({"a.w": torch.zeros(2), "b.w": torch.ones(2), "d": torch.zeros(1)}, "b.safetensors")
    for more, code, found in (
        (["--include", "a"], 0, "1 tensor byte for byte, 3 left out"),
        (["--exclude", "b", "--exclude", "{c,d}"], 0, "1 tensor byte for byte, 3 left out"),
        (["--include", "b"], 1, "0 tensors identical byte for byte, 1 changed, 3 left out"),
        (["--exclude", "b"], 1, "1 tensor identical byte for byte, 1 removed, 1 added, 1 left out"),
        (["--include", "c"], 1, "0 tensors identical byte for byte, 1 removed, 3 left out"),
    ):
        done = ckpt("diff", "a.safetensors", "b.safetensors", "--values", *more)
        assert (done.code, found in done.out) == (code, True), done
    assert cs.diff("a.safetensors", "b.safetensors", include=["a"]).left_out == 3
    assert cs.diff("a.safetensors", "b.safetensors", exclude="b").to_json()["left_out"] == 1


def test_a_pattern_that_neither_has_is_an_error(ckpt: Any) -> None:
    save_file({"alpha.w": torch.zeros(2)}, "a.safetensors")
    save_file({"alpha.w": torch.zeros(2), "beta.w": torch.zeros(2)}, "b.safetensors")
    done = ckpt("diff", "a.safetensors", "b.safetensors", "--exclude", "alpah")
    assert (done.code, "--exclude alpah matches none of the 2 checkpoint keys" in done.err) == (2, True)
    assert "alpha (1 key)" in done.err
    assert ckpt("diff", "a.safetensors", "b.safetensors", "--exclude", "beta").code == 0


def test_large_files_are_chosen_from_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.api.diff.LARGE", 1)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, "a.safetensors")
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, "b.safetensors")
    assert cs.diff("a.safetensors", "b.safetensors").differs
    assert not cs.diff("a.safetensors", "b.safetensors", exclude="b").differs


def test_depth_has_a_row_for_each_module(ckpt: Any) -> None:
    keys = [f"net.{part}.{i}.w" for part in ("enc", "dec") for i in range(3)] + ["head"]
    save_file({key: torch.zeros(2) for key in keys}, "a.safetensors")
    save_file({key: torch.full((2,), float("enc.1" in key)) for key in keys}, "b.safetensors")
    out = ckpt("diff", "a.safetensors", "b.safetensors", "--values", "--depth", "2").out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["identical", "changed"]
    assert rows[1:4] == [["head", "1", "-"], ["net.dec", "3", "-"], ["net.enc", "2", "1", "max", "1"]]
    assert "6 tensors identical byte for byte, 1 changed" in out
    assert ckpt("diff", "a.safetensors", "a.safetensors", "--depth", "1").code == 0


def test_the_last_line_counts_nan_and_inf_of_one_of_them(ckpt: Any) -> None:
    save_file({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.ones(2)}, "a.safetensors")
    save_file({"a": torch.tensor([1.0, float("nan"), float("inf")]), "b": torch.ones(2)}, "b.safetensors")
    last = ckpt("diff", "a.safetensors", "b.safetensors", "--values").out.splitlines()[-1]
    assert last == "  1 tensor identical byte for byte, 1 changed; 1 NaN and 1 Inf in the second only"


def test_notes_on_tensors_that_are_left_out_are_not_said() -> None:
    first = {"a": torch.ones(2), "b": torch.full((2,), torch.nan), "c": torch.full((2,), torch.nan)}
    torch.save(first, "a.pth")
    torch.save({key: torch.ones(2) for key in first}, "b.pth")
    both = "a.pth: 2 small tensors have NaN or infinite values: b, c"
    for values in (False, True):
        assert cs.diff("a.pth", "b.pth", include="a", values=values).notes == ()
        some = cs.diff("a.pth", "b.pth", exclude="b", values=values).notes
        assert some == (f"{both} (this counts tensors that are left out, too)",)
        assert cs.diff("a.pth", "b.pth", values=values).notes == (both,)
    assert cs.inspect("a.pth", exclude=["b", "c"]).notes == ()
