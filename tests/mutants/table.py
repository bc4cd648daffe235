"""Promises that are broken on purpose, each by a change of one line of the package, and the tests that should see it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """A promise, a text that stands once in the package and what takes its place, and where tests of it are."""

    promise: str
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant(
        "a token list that the ids of a model without a tokeniser contradict gets a note",
        "if not {field.removeprefix(TEXT) for field in wrong} <= WEAK:",
        "if not wrong:",
        "api/model_folder/tokenizer/test_given_list.py",
    ),
    Mutant(
        "a CTC model whose blank is its word delimiter gets a note",
        "(SPECIAL.fullmatch(token) or token in {*names.values(), *added_tokens(folder)})",
        "SPECIAL.fullmatch(token)",
        "api/model_folder/tokenizer/test_special_tokens.py",
    ),
    Mutant(
        "an adapter whose saved modules the base has already gets a note",
        "if _is_trained(opened[number], one) and _are_equal(opened[0], opened[number], keys):",
        "if not _is_trained(opened[number], one) and _are_equal(opened[0], opened[number], keys):",
        "api/lora/test_already_merged.py",
    ),
    Mutant(
        "a model that is also the base of its merge gets a note",
        "return [*notes, *base_notes(opened[models], opened[:models])] if len(opened) > models else notes",
        "return notes",
        "api/merge/test_repeated_models.py",
    ),
    Mutant(
        "check compares the values of an output with the checksums in its recipe",
        "bad = tuple(key for key in compared if here[key] != sums[key])",
        "bad = ()",
        "analysis/check/test_recipe_checksums.py",
    ),
    Mutant(
        "a shard of another output beside those of a recipe gets a note",
        "if strange and others:",
        "if strange and not others:",
        "checkpoint/test_shard_origin.py",
    ),
    Mutant(
        "packed weights of torch.ao that are not read are refused, not left out",
        "if key in packed and (is_module or key in read or hidden[key]):",
        "if key in packed and (is_module or key in read):",
        "checkpoint/test_packed_parameters.py",
    ),
    Mutant(
        "match never takes one part of a transformer block for another",
        "if fits(one, other) and agree(one.parts, other.parts):",
        "if fits(one, other):",
        "analysis/match",
    ),
    Mutant(
        "queries and keys whose new names mean another order of rows get a note",
        "match is None or here.order == there.order:",
        "match is None or here.order != there.order:",
        "api/model_folder/test_row_order.py",
    ),
    Mutant(
        "operations with another number of heads than the configuration get a note",
        'if stated is not None and row["heads"] != stated:',
        'if stated is not None and row["heads"] < stated:',
        "api/model_folder/test_row_order.py",
    ),
    Mutant(
        "rows of padding in the source are in no mean for new tokens",
        "number = info.shape[step.axis] - rows.unlisted",
        "number = info.shape[step.axis]",
        "destinations/hf/test_vocabularies.py",
    ),
    Mutant(
        "rows beyond a list are padding only if the list is the model's own, or the user names the tensor",
        "if is_turned or (more and not (more > 0 and (asked or own))):",
        "if is_turned or more < 0:",
        "destinations/hf/test_vocabularies.py",
    ),
    Mutant(
        "copied values that contradict the recipe of their file get a note",
        "made.get(source.stored_key(key), crc) != crc",
        "made.get(source.stored_key(key), crc) == crc",
        "engine/test_recipes_of_sources.py",
    ),
    Mutant(
        "merge rules in another order get a note",
        "theirs.tokens == ours.tokens and theirs.rule_hash != ours.rule_hash:",
        "theirs.tokens == ours.tokens and theirs.rules != ours.rules:",
        "api/model_folder/tokenizer/test_file_differences.py",
    ),
    Mutant(
        "square matrices that stay as they are beside transposed ones get a note",
        "return [key for key, shape in flat.items() if shape[0] == shape[1] and _place(key) in places]",
        "return [key for key, shape in flat.items() if shape[0] != shape[1] and _place(key) in places]",
        "planning/transplant/test_turned.py",
    ),
    Mutant(
        "parts of fused projections that operations take for other parts get a note",
        "return found != [kind for kind in order if kind in found]",
        "return found == order",
        "api/model_folder/test_fused_parts.py",
    ),
    Mutant(
        "halves are made of pairs, and pairs of halves",
        'grid = (pairs, 2) if operation.verb == "halves" else (2, pairs)',
        "grid = (pairs, 2)",
        "planning/operations",
    ),
    Mutant(
        "a transplant that fills little of the destination gets a note",
        "if 2 * len(missing) <= len(own) or",
        "if len(missing) <= len(own) or",
        "planning/transplant",
    ),
    Mutant(
        "the seal of a file covers the scales of channels of torch's quantised tensors",
        "payload = sorted((one.data, one.data + one.stored) for one in stored if not one.name.endswith(PARAMETERS))",
        "payload = sorted((one.data, one.data + one.stored) for one in stored)",
        "tensors/encodings",
    ),
    Mutant(
        "rows of a quantised embedding that the source has are copied as they are stored",
        "values[copied] = own.reshape(shape)[copied]",
        "values[copied] = 0",
        "planning",
    ),
    Mutant(
        "new rows are not mixed with rows under another scale of the whole weight",
        'if is_mixed and "whole" in kinds.values():',
        "if False:",
        "planning",
    ),
    Mutant(
        "scales that are inverse in all layers are found",
        "if factor and not low <= factor <= high:",
        "if factor < low:",
        "analysis/check",
    ),
    Mutant(
        "inverse scales of narrow models are found by their codes",
        "float(np.mean(scales * sizes)) > RISES * variance",
        "float(np.mean(scales * sizes)) > 1e9 * variance",
        "tensors/decoders/test_odd_sizes.py",
    ),
    Mutant(
        "scales that are all negative are named",
        "return scale.size >= CERTAIN and",
        "return False and",
        "tensors/decoders/test_odd_signs.py",
    ),
    Mutant(
        "scales of MLX that were exchanged with biases are named",
        "return smallest < 0 and scales > max(biases, SMALLEST**2)",
        "return smallest > 0 and scales > max(biases, SMALLEST**2)",
        "tensors/decoders/test_exchanged_biases.py",
    ),
    Mutant(
        "layers that are joined share the global scale of nvfp4",
        "joined = together(key) if scheme.is_shared else ()",
        "joined = ()",
        "tensors/encoders",
    ),
    Mutant(
        "a weight that is NaN is not rounded to a code",
        "if not (np.isfinite(least).all() and np.isfinite(greatest).all()):",
        "if not np.isfinite(least).all():",
        "tensors/encoders",
    ),
    Mutant(
        "what stays plain is listed in the settings of quantisation",
        "return {**scheme.settings, scheme.ignore: list(plain)}",
        "return {**scheme.settings, scheme.ignore: []}",
        "api/quantising",
    ),
    Mutant(
        "a pattern that matches far more deeper down gets a note",
        "if more >= MANY_MORE * hits",
        "if more >= 1000 * MANY_MORE * hits",
        "planning/keys cli",
    ),
    Mutant(
        "a layer that lacks tensors is said",
        "    yield from hole_notes(lists, gaps, keys, config)",
        "    yield from ()",
        "api/model_folder/weights/test_family_checks.py",
    ),
    Mutant(
        "a layer at another position remains of its kind",
        "            inner.update(way)\n",
        "            inner.update({})\n",
        "api/model_folder/test_kinds_by_position.py",
    ),
    Mutant(
        "a folder whose configuration contradicts its layers is not written",
        "    if plan.target.refused:\n",
        "    if False:\n",
        "api/model_folder/test_kinds_by_position.py",
    ),
    Mutant(
        "a cast of what may be scales is said",
        "if fitting and doing[used]:",
        "if False and doing[used]:",
        "planning/test_possible_codes.py",
    ),
    Mutant(
        "a layer that runs as another kind is said",
        "moved_layer_notes(plan, number, theirs, written, is_own=theirs is ours)",
        "()",
        "api/model_folder/test_kinds_by_position.py",
    ),
    Mutant(
        "a pattern matches a whole key",
        "found = self.expression.fullmatch(key)",
        "found = self.expression.search(key)",
        "planning/keys",
    ),
    Mutant(
        "a name in a pickle is not imported",
        "        return OpaqueResult(function, args)\n",
        "        return __import__(function.module).__dict__[function.name](*args)\n",
        "hostile/test_canary.py",
    ),
    Mutant(
        "how deep a pickle nests is bounded",
        "if len(marks) >= deepest:",
        "if len(marks) < 0:",
        "formats/pickle hostile/test_limits.py",
    ),
    Mutant(
        "no byte of a safetensors file is in two tensors",
        "        if begin != at:",
        "        if begin > at:",
        "formats/test_safetensors.py hostile/test_safetensors.py",
    ),
    Mutant(
        "records are held against the checksum of their archive",
        "            if found.crc != info.storage.crc32:",
        "            if found.crc is None:",
        "hostile/test_zip.py engine/test_apply.py",
    ),
    Mutant(
        "an archive's headers agree with its directory",
        "    if local_method != method:",
        "    if local_method == -1:",
        "formats/zip hostile/test_zip.py",
    ),
    Mutant(
        "control characters are escaped",
        " and unicodedata.category(char) not in _HIDDEN:",
        ":",
        "hostile/test_shown.py util",
    ),
    Mutant(
        "an output is on disk before it takes the place of another",
        "        staged.flush(size)\n        try:\n            _place(",
        "        try:\n            _place(",
        "engine/test_output.py storage/write",
    ),
    Mutant(
        "an input is never written over",
        "            if (info.st_dev, info.st_ino) in taken:",
        "            if (info.st_dev, info.st_ino) in set():",
        "engine/test_output.py",
    ),
    Mutant(
        "one run at a time writes an output",
        '        except BlockingIOError:\n            os.close(fd)\n            return None\n',
        '        except BlockingIOError:\n            return fd\n',
        "storage/write",
    ),
    Mutant(
        "a source that changed since the plan is refused",
        "    return now is not None and (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns)",
        "    return False",
        "engine/test_apply.py engine/test_output.py api/test_edit.py",
    ),
    Mutant(
        "a module that cannot take all tensors keeps what it had",
        "        for tensor, values in reversed(previous):\n            with suppress(RuntimeError):\n                _set(tensor, values)\n",
        "        previous.clear()\n",
        "api/test_load_into.py",
    ),
    Mutant(
        "what the source does not give is drawn as the model draws it",
        "        values = _drawn(run, step, dtype, data)",
        "        values = _drawn(run, step, dtype, memoryview(bytes(len(data))))",
        "engine/test_apply.py planning/transplant",
    ),
    Mutant(
        "rows follow their tokens",
        "rows = {token: row for row, token in enumerate(source.tokens)}",
        "rows = {token: row for row, token in enumerate(reversed(source.tokens))}",
        "api/transplant/test_vocabulary.py vocabulary",
    ),
    Mutant(
        "values that become infinite by a cast are counted",
        "    return made, CastLosses(infinite, zero)\n",
        "    return made, Lost(0, zero)\n",
        "tensors/ops engine/test_apply.py",
    ),
    Mutant(
        "an exponential average weighs the newest most",
        "decay ** (number - 1 - i) for i",
        "decay**i for i",
        "api/test_average.py",
    ),
    Mutant(
        "an adapter is scaled by alpha over its rank, or by its root for rsLoRA",
        "(sqrt(rank) if self.rslora else rank)",
        "rank",
        "api/lora",
    ),
    Mutant(
        "TIES keeps what has the sign of the sum",
        "delta * sign > 0, dtype",
        "delta * sign != 0, dtype",
        "methods/merge/test_mergekit.py methods/merge/test_properties.py",
    ),
    Mutant(
        "verify --patch finds a file that is not the one that the patch makes",
        "if file.size == one.size and digest_of(file) == one.sha256:",
        "if file.size == one.size:",
        "api/test_patch.py",
    ),
    Mutant(
        "verify finds a value that is not the one that was written",
        "    if check.expected.has_checksums and crc != made.crc32:",
        "    if check.expected.has_checksums and crc < 0:",
        "analysis/verify",
    ),
    Mutant(
        "what a hub calls a path stays in its folder",
        'any(part in ("", ".", "..")',
        'any(part in ("", ".")',
        "storage/fetch/test_hostile.py",
    ),
    Mutant(
        "credentials of an address are never shown",
        '    return _USER.sub("", text) if "://" in text else text',
        "    return text",
        "storage/read/test_secrets.py util",
    ),
    Mutant(
        "what is no matter of values is done without torch",
        '_HIDDEN = {"Cc"',
        'import torch\n\n_HIDDEN = {"Cc"',
        "project/test_public_api.py",
    ),
    Mutant(
        "weights decay as the configuration says",
        '"weight_decay": kind[1]}',
        '"weight_decay": 0.0}',
        "trainer/test_loop.py trainer/test_learning_rate.py",
    ),
    Mutant(
        "adapters are saved under the keys that PEFT gives them",
        '    return {f"{PREFIX}{key}": tensor for key, tensor in found.items()}',
        "    return dict(found)",
        "trainer/test_lora.py",
    ),
    Mutant(
        "a batch by seconds has no more of them with its padding than batch_seconds",
        "(len(batches[-1]) + 1) * both <= self.seconds",
        "len(batches[-1]) * both <= self.seconds",
        "trainer/test_batch_order.py trainer/test_batches.py",
    ),
    Mutant(
        "a check that fails before the first step ends the run",
        "if not options.keep_going and any(check.status == FAIL for check in before):",
        "if not options.keep_going and any(check.status == FAIL for check in ()):",
        "trainer/test_train.py",
    ),
    Mutant(
        "a layer that was given the same values everywhere is not called dead",
        "judged=given[name].varies and not _begins_as_zeros(modules[name])",
        "judged=True",
        "trainer/test_checks.py trainer/test_healthy.py",
    ),
    Mutant(
        "a check that cannot be made is not run, with the reason",
        "return tuple(Check(name, NOT_RUN, why) for name in names)",
        'return tuple(Check(name, "PASS", why) for name in names)',
        "trainer/test_run_job.py",
    ),
    Mutant(
        "the last complete step is saved if another process dies",
        "            if error.is_whole:\n                self._save_alone()",
        "            if not error.is_whole:\n                self._save_alone()",
        "trainer/test_lost_ranks.py",
    ),
    Mutant(
        "a signal that one process got ends all of them, by the agreement before the backward pass",
        "received = [name == signal for name in SIGNAL_NAMES]",
        "received = [False for name in SIGNAL_NAMES]",
        "trainer/test_ranks.py",
    ),
    Mutant(
        "last leads to a checkpoint that is whole, whatever a disk does to the thread that writes",
        "            yield staged\n        self._point(step)\n",
        "            self._point(step)\n            yield staged\n",
        "trainer/test_writing.py trainer/test_resume.py",
    ),
    Mutant(
        "an error of the thread that writes checkpoints ends the run",
        "            pending.result()",
        "            pending.exception()",
        "trainer/test_writing.py",
    ),
    Mutant(
        "float32 is exact on a GPU, and tf32 rounds",
        '_set_tf32(settings.precision != "float32")',
        '_set_tf32(settings.precision == "bf16")',
        "trainer/test_devices.py",
    ),
    Mutant(
        "decay of matrices leaves biases and norms alone",
        'settings.decay == "all" or parameter.dim() > 1',
        'settings.decay == "all" or parameter.dim() > 0',
        "trainer/test_learning_rate.py",
    ),
    Mutant(
        "a beam search merges equal neighbours as CTC does",
        "begun = np.where(letters == last[:, None], beam.blank[:, None], either[:, None])",
        "begun = np.where(letters == last[:, None], either[:, None], either[:, None])",
        "trainer/test_ctc_search.py",
    ),
    Mutant(
        "a run that an older version began is resumed",
        'return {**made, "beam": None} if',
        "return made if",
        "trainer/test_train.py",
    ),
    Mutant(
        "a clip is read by a model of ESPnet without the padding behind it",
        "encode(wave[None, :length], length[None])",
        "encode(wave[None], length[None])",
        "trainer/test_espnet_task.py",
    ),
    Mutant(
        "a tensor that llama.cpp needs and a GGUF file lacks is said",
        '    if lost:\n        needs = f"which llama.cpp needs',
        '    if False:\n        needs = f"which llama.cpp needs',
        "api/gguf/test_block_tensors.py",
    ),
    Mutant(
        "a GGUF file whose texts end at an ordinary token gets a note",
        'return "" if text.startswith(SPECIAL) else text',
        'return ""',
        "api/gguf/test_tokenizer_notes.py",
    ),
    Mutant(
        "a merged adapter is recorded in every recipe that is made of the merged model",
        "        elif index in used:",
        "        elif adds:",
        "api/inputs/test_merged_adapters.py",
    ),
    Mutant(
        "a recipe of other weights is not believed",
        "if _checksum(stored, info) != crc:",
        "if _checksum(stored, info) < 0:",
        "api/inputs/test_merged_adapters.py",
    ),
    Mutant(
        "average and merge note an input that another input was made from",
        "if source is not one and _is_source(source, one, recipe) and not changed_tensor(one)",
        "if source is one and _is_source(source, one, recipe) and not changed_tensor(one)",
        "api/inputs/test_recorded_sources.py",
    ),
    Mutant(
        "lora extract notes two models in the wrong order",
        "not _is_made(base, tuned, recipe) or changed_tensor(base):",
        "not _is_made(tuned, base, recipe) or changed_tensor(base):",
        "api/inputs/test_recorded_sources.py",
    ),
    Mutant(
        "zeros where a part of a file is missing are noted",
        "if min(column, rest) >= NEAR and above >= one.begin and any(file.read(above, min(rest, BLOCK))):",
        "if min(column, rest) >= NEAR and above >= one.begin and not any(file.read(above, min(rest, BLOCK))):",
        "checkpoint/test_zero_runs.py",
    ),
    Mutant(
        "codes that were cast without their scales are noted",
        "if not any(one & ((1 << LOW_BITS[dtype]) - 1) for one in bits):",
        "if not any(one & (1 << LOW_BITS[dtype]) for one in bits):",
        "checkpoint/test_cast_codes.py",
    ),
    Mutant(
        "half of the layers may be those that are wrong",
        "if powers[ordered[at]] > SUSPECT:",
        "if powers[ordered[at]] > SUSPECT and at > len(ordered) // 2:",
        "tensors/decoders/test_odd_sizes.py",
    ),
)  # fmt: skip
