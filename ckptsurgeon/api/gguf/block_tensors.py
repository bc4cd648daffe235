"""Notes on tensors that a GGUF file lacks, although its architecture needs them or most other blocks have them.

The function ``load_tensors`` in llama.cpp's ``src/llama-model.cpp`` shows the tensors that each architecture needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

from ...planning.llama_cpp.names import ARCHITECTURES, DEEPSEEK
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import count, listing

__all__ = ["is_whole_model", "lacking_notes"]

Blocks = Mapping[int, Set[str]]
"""The names of each block's tensors, by the number of the block; names have no prefix such as ``blk.2.``."""

_KEY = re.compile(r"blk\.(\d{1,9})\.(.+\.(?:weight|bias))$")
_OF_EXPERTS = re.compile(r"ffn_\w+_exps\.|ffn_gate_inp\.|ffn_\w+\.\d+\.")
_DOWN = re.compile(r"ffn_down(?:_exps|\.\d+)?\.")
_OF_FFN = re.compile(r"ffn_(?!norm)|exp_probs_b")
_SEPARATE = ("attn_q", "attn_k", "attn_v")
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
_NEEDED = frozenset((
    "attn_norm", "attn_output", "attn_qkv", "ffn_norm", "post_attention_norm", "post_ffw_norm", *_SEPARATE, *_DENSE,
))  # fmt: skip
"""Modules that each block must have if the architecture has them: otherwise, llama.cpp does not load the file."""
_OUTSIDE = ("token_embd.weight", "output_norm.weight")
"""Tensors outside blocks that every model has; ``output.weight`` is missing if the embedding is the output layer."""
_PER_BLOCK = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
"""Metadata entries that have a list (a value for each block) if the blocks of a model differ on purpose."""
FEWEST = 4
"""If the architecture is unknown and there are fewer blocks than this, there is no note on missing tensors."""


def is_whole_model(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Return whether a file should have all tensors of a model: false for one of several files, and for an adapter."""
    is_single = metadata.get("split.count", "1") in ("", "0", "1")
    is_model = metadata.get("general.type", "model") in ("", "model")
    return is_single and is_model and not any(key.endswith(".lora_a") for key in keys)


def lacking_notes(keys: Collection[str], metadata: Mapping[str, str]) -> Iterator[Note]:
    """Yield notes on tensors that are missing from the file of a whole model.

    ``metadata`` maps the names of metadata entries to their values. In an architecture that ckpt knows, all blocks of
    the same kind (dense, or with experts) have the same tensors. In any other architecture, a block is noted only if it
    is the only one that lacks tensors.
    """
    architecture = metadata.get("general.architecture", "")
    blocks = _blocks(keys)
    if not blocks or not architecture:
        return
    if architecture not in ARCHITECTURES:
        if not any(_is_list(metadata.get(f"{architecture}.{entry}", "1")) for entry in _PER_BLOCK):
            yield from _odd_block(blocks)
        return
    lost = [key for key in _OUTSIDE if key not in keys]
    lost += [f"blk.{number}.{rest}" for number, own in blocks.items() for rest in _needed(architecture, own)]
    if lost:
        needs = f"which llama.cpp needs for the architecture {architecture}"
        said = f"the file lacks {listing(lost, 4, where='')}, {needs}: llama.cpp cannot load the file"
        yield Note(NoteKind.METADATA_REFUSED, said)
    yield from _uneven(blocks, set(lost))


def _blocks(keys: Iterable[str]) -> Blocks:
    found: dict[int, set[str]] = {}
    for match in filter(None, map(_KEY.match, keys)):
        found.setdefault(int(match[1]), set()).add(match[2])
    return dict(sorted(found.items()))


def _is_list(value: str) -> bool:
    return not value.isdigit()


def _has_experts(own: Set[str]) -> bool:
    return any(map(_OF_EXPERTS.match, own))


def _needed(architecture: str, own: Set[str]) -> list[str]:
    """Return the names of tensors that llama.cpp needs in each block, and that are not in ``own``.

    ``own`` has the names of the tensors in one block, such as ``attn_q.weight``.
    """
    theirs = (name.removeprefix("blk.{n}.") for name in ARCHITECTURES[architecture].names.values())
    without: tuple[str, ...] = ("attn_q",) if architecture == DEEPSEEK else ()
    without += _DENSE if _has_experts(own) else ()
    without += _SEPARATE if "attn_qkv.weight" in own else ("attn_qkv",) if "attn_q.weight" in own else ()
    needed = [f"{name}.weight" for name in theirs if name in _NEEDED and name not in without]
    has_down = any(map(_DOWN.match, own)) or "ffn_down.weight" in needed
    return [one for one in [*needed, *([] if has_down else ["ffn_down_exps.weight"])] if one not in own]


@notes_of(NoteKind.OTHER)
def _uneven(blocks: Blocks, noted: Set[str]) -> Iterator[str]:
    """Yield notes on tensors that a block lacks although at least half of the blocks of its kind have them.

    Tensors in ``noted`` are left out, because there are notes on them already.
    """
    found: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for alike, is_ffn in ((list(blocks), False), *((kind, True) for kind in _kinds(blocks))):
        counts = Counter(rest for one in alike for rest in blocks[one] if bool(_OF_FFN.match(rest)) == is_ffn)
        for rest in sorted(one for one, number in counts.items() if number * 2 >= len(alike)):
            lost = tuple(one for one in alike if rest not in blocks[one] and f"blk.{one}.{rest}" not in noted)
            if lost:
                found.setdefault((lost, len(alike)), []).append(rest)
    yield from (_note(lost, rests, number) for (lost, number), rests in found.items())


def _kinds(blocks: Blocks) -> list[list[int]]:
    """Return two lists: the numbers of the blocks with experts, and the numbers of the other blocks."""
    return [[one for one, own in blocks.items() if _has_experts(own) == kind] for kind in (True, False)]


@notes_of(NoteKind.OTHER)
def _odd_block(blocks: Blocks) -> Iterator[str]:
    """Yield a note if a single block, not the first or the last, lacks tensors that most blocks have.

    There is no note if the block lacks all tensors of a module, such as attention: it is then a block of another kind.
    """
    usual, number = Counter(frozenset(own) for own in blocks.values()).most_common(1)[0]
    fewer = [place for place, own in blocks.items() if own < usual]
    if len(blocks) < FEWEST or 2 * number < len(blocks) or len(fewer) != 1 or fewer[0] in (min(blocks), max(blocks)):
        return
    own = blocks[fewer[0]]
    lost = sorted(usual - own)
    parts = {rest.partition("_")[0] for rest in own if "norm" not in rest}
    if all(rest.partition("_")[0] in parts for rest in lost):
        yield _note(fewer, lost, len(blocks))


def _note(lacking: Sequence[int], lost: Sequence[str], blocks: int) -> str:
    """Return the note that the blocks ``lacking``, among ``blocks`` blocks of one kind, lack the tensors ``lost``."""
    names = listing([f"blk.{one}" for one in lacking], 4, where="")
    have = f"{blocks - len(lacking)} of {count(blocks, 'block')} of this kind have"
    return f"{names} {'lacks' if len(lacking) == 1 else 'lack'} {listing(lost, 4, where='')}, which {have}"
