"""Notes on tensors whose new names imply another order of rows than the old ones, or a transposed matrix."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....planning.keys.pattern import KeyPattern
from ....planning.keys.renaming import KeyMatcher
from ....planning.keys.row_order import HALVES, PAIRS, misordered
from ....planning.keys.transposed import layout_notes, square_siblings, transposed_hint
from ....planning.llama_cpp.model_types import MODEL_TYPES
from ....planning.llama_cpp.names import ARCHITECTURES, in_llama_cpp
from ....planning.plan.plan import Plan
from ....planning.plan.step import Step
from ....util.note_kind import NoteKind
from ....util.notes import as_notes
from ....util.text import count, escape, listing
from .fused import fused_notes
from .heads import ARCHITECTURE, Settings, architecture_of, has_own_order, heads_of, settings_of
from .reordered import reordering_notes

__all__ = ["renaming_notes", "row_orders", "with_row_order_said"]

_REORDER = (HALVES, PAIRS, "reshape", "permute")
_TURN = ("transpose", "permute", "reshape")


def with_row_order_said(plan: Plan, sources: Sequence[Checkpoint], config: Settings) -> Plan:
    """Return the plan with notes on tensors whose new names imply another order of rows, or a transposed matrix.

    There are also notes on operations that reorder rows in another way than the names and the configuration imply.
    ``sources`` are the sources after all operations, with the names that tensors have before rules rename them.
    ``config`` are the fields of the destination's configuration.
    """
    keys = [step.key for step in plan.steps]
    notes: list[str] = []
    for number, source in enumerate(sources):
        notes += _row_order_notes(list(_renamed(plan, number, _REORDER)), source, keys, config)
        notes += _norm_notes(list(_renamed(plan, number, ("shift",))), source)
        notes += reordering_notes(plan, number, source, keys, config)
        turned = [*layout_notes(list(_renamed(plan, number, _TURN)), source), *_forgotten(plan, number)]
        notes += as_notes(NoteKind.TRANSPOSED, turned)
        notes += fused_notes(plan, number, source)
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def renaming_notes(
    names: Collection[tuple[str, str]], source: Checkpoint, destination: Collection[str], config: Settings
) -> Iterator[str]:
    """Yield notes on tensors whose new names imply another layout; ``names`` are pairs (old key, new key).

    ``destination`` are all keys of the destination, ``config`` are the fields of its configuration.
    """
    yield from _row_order_notes(names, source, destination, config)
    yield from _norm_notes(names, source)
    yield from layout_notes(names, source)


def row_orders(
    names: Collection[tuple[str, str]], source: Checkpoint, destination: Collection[str], config: Settings
) -> dict[str, tuple[str, int]]:
    """Return {old key: (operation, number of heads)} of queries and keys whose new names imply another order of rows.

    The operation ("halves" or "pairs") puts the rows into the order that the new names imply. The result is {} if the
    numbers of heads are not known. The arguments are those of ``renaming_notes``.
    """
    found = misordered(names, (list(source), destination)) if names else None
    settings = config, settings_of(source)
    if found is None or has_own_order(found.libraries, settings):
        return {}
    heads = heads_of(found.modules, source, settings)
    is_known = "llama.cpp" not in found.libraries or any(map(architecture_of, settings))
    if not is_known or not all(kind in heads for kind in found.modules.values()):
        return {}
    patterns = [(KeyPattern.given(module, ""), heads[kind]) for module, kind in found.modules.items()]
    return {key: (found.order, number) for key in found.renamed for pattern, number in patterns if pattern.matches(key)}


def _row_order_notes(
    names: Collection[tuple[str, str]], source: Checkpoint, destination: Collection[str], config: Settings
) -> Iterator[str]:
    """Yield the note on queries and keys whose new names imply another order of rows."""
    found = misordered(names, (list(source), destination)) if names else None
    if found is not None:
        settings = config, settings_of(source)
        if not has_own_order(found.libraries, settings):
            is_known = "llama.cpp" not in found.libraries or any(map(architecture_of, settings))
            yield found.note(heads_of(found.modules, source, settings), is_llama=is_known)


def _norm_notes(names: Collection[tuple[str, str]], source: Checkpoint) -> Iterator[str]:
    """Yield a note on norms that are renamed between transformers and llama.cpp, if llama.cpp stores them with 1 added.

    An example is Gemma: transformers adds the 1 when it computes.
    """
    stated = source.metadata.get(ARCHITECTURE) or MODEL_TYPES.get(str(settings_of(source).get("model_type")), "")
    if stated not in ARCHITECTURES or not ARCHITECTURES[stated].one_more:
        return
    norms = [old for old, new in names if old.endswith("norm.weight") and in_llama_cpp([old]) != in_llama_cpp([new])]
    if norms:
        layout, output = ("transformers", "NAME/") if in_llama_cpp(norms) else ("gguf", "NAME.gguf")
        yield (
            f"{count(len(norms), 'norm gets a new name', 'norms get new names')}, but no new values: llama.cpp "
            f"stores the norms of {stated} with 1 added, transformers without it: {listing(norms, 3)}. First run "
            f"ckpt convert {escape(source.path)} --layout {layout} -o {output}"
        )


def _renamed(plan: Plan, number: int, verbs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (old key, new key) of each tensor of source ``number`` that a rule renames, but no operation changes.

    Only the operations ``verbs``, such as "transpose", are considered.
    """
    changed = _matcher(plan.sources[number].operations, verbs)
    for step in plan.steps:
        is_renamed = step.source == number and step.rule.startswith("--map")
        if is_renamed and not any(map(changed.match, _keys(step))):
            yield step.source_key, step.key


def _forgotten(plan: Plan, number: int) -> Iterator[str]:
    """Yield a note on square matrices of source ``number`` that are not transposed, although others are.

    The others are all other matrices of the same layers.
    """
    transposes = _matcher(plan.sources[number].operations, ("transpose", "permute"))
    steps = [step for step in plan.steps if step.source == number and step.op == "copy" and len(step.shape) == 2]
    turned = [step.source_key for step in steps if any(map(transposes.match, _keys(step)))]
    rest = {
        step.source_key: step.source_shape
        for step in steps
        if not any(map(transposes.match, _keys(step))) and not (step.made_of and len({*step.source_shape}) == 1)
    }
    square = square_siblings(turned, rest)
    if square:
        yield (
            f"{count(len(square), 'square matrix is', 'square matrices are')} not transposed, although operations "
            f"transpose all other matrices of the same layers ({listing(turned, 3)}): {listing(square, 3)}. The shape "
            f"of a square matrix does not show its layout. {transposed_hint(square[0])}"
        )


def _keys(step: Step) -> tuple[str, ...]:
    """Return the key of a step's tensor after the operations, followed by the keys of the tensors it was made from."""
    return (step.source_key, *step.made_of)


def _matcher(rows: Sequence[Mapping[str, Any]], verbs: Sequence[str]) -> KeyMatcher:
    """Return a matcher for the keys that operations in ``rows`` change; operations other than ``verbs`` are ignored."""
    return KeyMatcher([KeyPattern.given(row[verb], "") for row in rows for verb in verbs if verb in row])
