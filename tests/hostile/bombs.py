"""Files that would cost time or memory without end, each made by a few lines.

One that a bound is to stop goes just beyond that bound: what comes behind is not read, and would only take time to make.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

from ckptsurgeon.formats.base import limits

from ..helpers import tensorflow_files as tf


def rare(instruction: bytes, each: int = 1) -> bytes:
    """So many instructions that are rare in a state dict, ``each`` in one, that the last is over the bound."""
    return instruction * (limits.PICKLE_RARE // each + 1)


def zipped(pickled: bytes, method: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def many_entries(number: int) -> bytes:
    """A directory that claims a million records and more."""
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, 0, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    return end64 + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def laughs(levels: int) -> bytes:
    """A list of ten times the list before, shared: 10 ** levels when flattened."""
    data = b"]q\x00"
    for i in range(levels):
        data += b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1])
    return data + b"."


BOMB = b")" + b"q\x00h\x00\x86" * 240  # a tuple of itself twice, 240 deep: showing it whole would take for ever


def module(children: bytes) -> bytes:
    """A pickled nn.Module of an unknown class with these modules in it."""
    return (
        b"cx\nNet\n)R}(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_buffers}X\x08\x00\x00\x00_modules}"
        + children
        + b"ub"
    )


def shared_modules(depth: int) -> bytes:
    data = module(b"") + b"q\x01"
    for _ in range(depth):
        data = data[:-2] + b"q\x010" + module(b"(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01u") + b"q\x01"
    return data + b"."


def doubled(times: int) -> bytes:
    """A list that holds a list twice, and so on: small, and without end when it is spelled out."""
    return b"]" + b"q\x00]h\x00ah\x00a" * times


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def scripted(attributes: bytes) -> bytes:
    """A module of a TorchScript archive, kept as memo 0."""
    return named("__torch__", "Net") + b")\x81}(" + attributes + b"ub" + b"q\x00"


def script(pickled: bytes) -> bytes:
    return zipped(pickled + b".", **{"constants.pkl": b"N."}, **SIX_FLOATS)


def long_script_names(length: int, levels: int) -> bytes:
    """Modules of two equal modules each, under names of a megabyte."""
    first, second = (text(letter * length) + b"q" + bytes([i]) + b"0" for i, letter in ((1, "a"), (2, "b")))
    data = first + second + scripted(text("w") + tensor())
    for _ in range(levels):
        data += b"0" + scripted(b"h\x01h\x00h\x02h\x00")
    return script(data)


def long_script_paths(number: int, tensors: bool) -> bytes:
    """A module of many tensors, or of many modules, at the end of a long path."""
    data = (tensor() if tensors else scripted(text("w") + tensor())) + b"q\x000"
    data += scripted(b"".join(text(str(i)) + b"h\x00" for i in range(number)))
    return script(data + b"0" + scripted(text("a" * 8000) + b"h\x00"))


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def called(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def model_with(value: bytes) -> bytes:
    """A state dict of nothing but this value."""
    return b"}" + text("a") + value + b"s."


def legacy(keys: bytes) -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + b"}." + keys


STORED = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x06tQ"
SIX_FLOATS = {"data/0": bytes(24)}


def tensor(size: bytes = b"K\x06\x85", stride: bytes = b"K\x01\x85", storage: bytes = STORED) -> bytes:
    return called(named("torch._utils", "_rebuild_tensor_v2"), storage, b"K\x00", size, stride, b"\x89", b"}")


def copies(function: bytes, what: bytes) -> bytes:
    """Thirty thousand calls that would each copy a hundred thousand values."""
    return b"0" + function + b"q\x01" + what + b"\x85q\x020](" + b"h\x01h\x02R" * 30_000 + b"e."


def colliding(size: bytes, number: int, *, strides: bool) -> bytes:
    """Tensors with pairs of numbers in them whose hashes in CPython are equal, and which no storage bounds."""
    found = b"}("
    for i, pair in enumerate(colliding_pairs(number)):
        numbers = b"".join(b"\x8a\x08" + n.to_bytes(8, "little") for n in pair)
        form = (size, numbers + b"\x86") if strides else (b"(" + numbers + b"K\x00t", size)
        found += text(str(i)) + tensor(*form, b"h\x00")
    return found + b"u."


def colliding_pairs(number: int) -> list[tuple[int, int]]:
    """Solve CPython's tuple hash (xxHash) for its last lane, all wanted states being the same."""
    one, two, five, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1

    def after(first: int) -> int:
        state = (five + first * two) & mask
        return ((state << 31 | state >> 33) & mask) * one & mask

    found, first, inverse = [], 1, pow(two, -1, 2**64)
    while len(found) < number:
        second = (12345 - after(first)) * inverse & mask
        if 0 < second < 2**61 - 1:
            found.append((first, second))
        first += 1
    return found


def shared_parameters(depth: int, parameters: int) -> bytes:
    """Modules of two equal modules each, to a depth; the innermost has many parameters."""
    leaf = b"}(" + b"".join(text(str(i)) + b"h\x00" for i in range(parameters)) + b"u"
    data = tensor() + b"q\x000" + module(b"").replace(text("_parameters") + b"}", text("_parameters") + leaf) + b"q\x01"
    for _ in range(depth):
        data += b"0" + module(b"(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01u") + b"q\x01"
    return data + b"."


def objects_of_a_shared_module(number: int) -> bytes:
    """One module under many names; it has as many attributes, each of which is an object of torch's C++ classes."""
    pair = b"K\x00" + text("__torch__.X") + b"\x86q\x01"
    attributes = text("p") + pair + b"".join(text(f"p{i}") + b"h\x01" for i in range(number))
    child = module(b"")[:-2] + attributes + b"ubq\x02"
    return module(b"(" + text("m") + child + b"".join(text(f"m{i}") + b"h\x02" for i in range(number)) + b"u") + b"."


def many_over_shared_modules(number: int) -> bytes:
    shared = shared_modules(12)[:-1]
    return shared + b"0}(" + b"".join(text(str(i)) + module(text("x") + b"h\x01s") for i in range(number)) + b"u."


def extras_over_a_list(number: int) -> bytes:
    """Entries that each hold a list of their own around one long list."""
    return b"](" + b"N" * 200_000 + b"eq\x000}(" + text("w") + tensor() + b"".join(
        text(f"k{i}") + b"]h\x00a" for i in range(number)
    ) + b"u."  # fmt: skip


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


OPENS = {
    "extras that share a list": lambda: zipped(extras_over_a_list(3000), zipfile.ZIP_STORED, **SIX_FLOATS),
    "a device of a list without end": lambda: zipped(b"}(" + text("w") + tensor() + text("d") + called(named("torch", "device"), doubled(60)) + b"u.", **SIX_FLOATS),
    "an object that is the call of a call": lambda: zipped(b"}(" + text("w") + tensor() + text("d") + named("x", "y") + b")R" * 50_000 + b"u.", **SIX_FLOATS),
    "strides that collide": lambda: zipped(STORED + b"q\x000" + colliding(b"K\x01K\x01\x86", 4000, strides=True), **SIX_FLOATS),
}  # fmt: skip
"""Files that are odd and harmless: they open, in time."""


def table_of(rows: list[tuple[bytes, bytes]], **options: Any) -> bytes:
    """TensorFlow's index, of one block and no data."""
    return tf.table([(rows[-1][0], tf.block([(b"", tf.HEADER), *rows]))], **options)


def sharing(number: int) -> bytes:
    """An index whose keys are 8,000 characters long, and share all but three with the one before."""
    first = b"k" * 7997
    rows = b"\0\0" + tf.varint(len(tf.HEADER)) + tf.HEADER + b"\0" + tf.varint(8000) + b"\0" + first + bytes(3)
    rows += b"".join(tf.varint(7997) + b"\3\0" + i.to_bytes(3, "big") for i in range(1, number))
    return tf.table([(b"l", rows + struct.pack("<II", 0, 1))])


def many_blocks(contents: list[bytes], keys: list[bytes]) -> bytes:
    """An index of many blocks."""
    sealed = [tf.sealed(content) for content in contents]
    at, handles = 0, []
    for key, content, whole in zip(keys, contents, sealed, strict=True):
        handles.append((key, tf.handle(at, len(content))))
        at += len(whole)
    meta, index = tf.block([]), tf.block(handles)
    footer = tf.handle(at, len(meta)) + tf.handle(at + len(meta) + 5, len(index))
    return b"".join([*sealed, tf.sealed(meta), tf.sealed(index), footer.ljust(40, b"\0"), tf.MAGIC])


def blocks_of_nothing(number: int) -> bytes:
    """An index of blocks of 4 kB, all restart points and no entry."""
    restarts = bytes(4 * 1023) + struct.pack("<I", 1023)
    first = tf.block([(b"", tf.HEADER)])
    keys = [i.to_bytes(4, "big") for i in range(number)]
    return many_blocks([first, *[restarts] * number], [b"", *keys])


def blocks_of_one_key(number: int) -> bytes:
    """An index of blocks of one long key each."""
    keys = [i.to_bytes(4, "big") + b"k" * 4000 for i in range(number)]
    return many_blocks([tf.block([(b"", tf.HEADER)]), *(tf.block([(key, b"")]) for key in keys)], [b"", *keys])


def snapped(number: int) -> bytes:
    """An index of blocks that each unpack to a megabyte."""
    size = 1 << 20
    packed = tf.varint(size) + b"\0\0" + b"\xfe\1\0" * (size // 64) + b"\xfa\1\0"
    return tf.table([(bytes([i]), packed) for i in range(number)], kind=1)


TABLES = {
    "TensorFlow's index of long keys that share": lambda: sharing(290_000),
    "TensorFlow's index of keys that are too long": lambda: table_of([(b"k" * 10_000_000, b"")]),
    "TensorFlow's index of blocks that unpack without end": lambda: snapped(200),
    "TensorFlow's index of too many tensors": lambda: table_of([(i.to_bytes(4, "big"), b"") for i in range(1, limits.TENSORS + 3)]),
    "TensorFlow's index of millions of fields": lambda: table_of([(b"w", b"\x52\0" * 6_000_000)]),
    "TensorFlow's index of slices that are nowhere": lambda: table_of([(i.to_bytes(4, "big"), tf.entry([1], 0) + b"\x3a\4\x0a\0\x0a\0" * 30) for i in range(1, limits.PIECES // 22)]),
    "TensorFlow's index of blocks of nothing": lambda: blocks_of_nothing(limits.TABLE_BYTES // 4_400),
    "TensorFlow's index of blocks of one long key": lambda: blocks_of_one_key(limits.TABLE_BYTES // 25_000),
    "TensorFlow's index of dimensions": lambda: table_of([(b"w", tf.field(2, b"\x12\0" * 5_000_000))]),
    "TensorFlow's index of restart points": lambda: tf.table([(b"", bytes(30_000_000) + struct.pack("<I", 7_000_000))]),
    "TensorFlow's index of nothing, and long": lambda: bytes(limits.TABLE_BYTES + 1) + tf.MAGIC,
    "TensorFlow's index of tensors of exabytes": lambda: table_of([(b"w", tf.entry([2**60], 2**62))]),
}  # fmt: skip
"""TensorFlow's index is a table of prefixes, lengths and offsets, any of which may lie."""

LARGE = {
    **TABLES,
    "a sparse tensor whose layout has no end": lambda: zipped(model_with(called(named("torch._utils", "_rebuild_sparse_tensor"), doubled(60), b"NNN\x87"))),
    "legacy storage keys without end": lambda: legacy(doubled(60) + b"."),
    "ordered dicts of a dict": lambda: zipped(b"}(" + b"".join(text(str(i)) + b"N" for i in range(100_000)) + b"uq\x00" + copies(named("collections", "OrderedDict"), b"h\x00")),
    "sets of a list": lambda: zipped(b"](" + b"N" * 100_000 + b"eq\x00" + copies(named("builtins", "set"), b"h\x00")),
    "sizes of a list": lambda: zipped(b"](" + b"N" * 100_000 + b"eq\x00" + copies(named("torch", "Size"), b"h\x00")),
    "bytes of a text": lambda: zipped(text("x" * 10_000_000) + b"q\x00" + copies(named("_codecs", "encode"), b"h\x00")),
    "modules over shared modules": lambda: zipped(many_over_shared_modules(500)),
    "objects of a shared module": lambda: zipped(objects_of_a_shared_module(2000), **SIX_FLOATS),
    "parameters shared by modules": lambda: zipped(shared_parameters(16, 2000), **SIX_FLOATS),
    "millions of names": lambda: zipped(b"".join(b"\x84" + struct.pack("<i", i) + b"0" for i in range(limits.PICKLE_NAMES + 1)) + b"N.", zipfile.ZIP_DEFLATED),
    "millions of tensors": lambda: zipped(named("torch._utils", "_rebuild_tensor_v2") + b"q\x00(" + STORED + b"K\x00K\x06\x85K\x01\x85\x89}tq\x01](" + b"h\x00h\x01R" * (limits.PICKLE_CALLS + 1) + b"e.", **SIX_FLOATS),
    "wide text": lambda: zipped(text("x" * (limits.PICKLE_TEXT // 4 * 5) + "\N{PILE OF POO}") + b".", zipfile.ZIP_DEFLATED),
    "texts that are wide together": lambda: zipped(text("x" * (limits.PICKLE_TEXT // 20) + "\N{PILE OF POO}") * 25 + b"."),
    "containers in a list": lambda: zipped(b"](" + rare(b"]") + b"e."),
    "lists in a list": lambda: zipped(b"](" + rare(b"]Na", 3) + b"e."),
    "metadata of lists": lambda: header(b'{"__metadata__":{"a":[' + b"[]," * limits.JSON_OPENED + b"[]]}}"),
    "metadata of objects": lambda: header(b'{"__metadata__":{"a":[' + b'{"":0},' * limits.JSON_OPENED + b"0]}}"),
    "an index of lists": lambda: b'{"weight_map":{"a":[' + b"[]," * limits.JSON_OPENED + b"[]]}}",
    "rebuilding that is rebuilt": lambda: zipped(model_with(named("torch._tensor", "_rebuild_from_type_v2") + b"q\x000" + b"h\x00(h\x00N(" * 3000 + b"h\x00NNNttNt" + b"t" * 0 + b"R")),
    "a nested tensor of an array": lambda: zipped(model_with(called(named("torch._utils", "_rebuild_nested_tensor"), called(named("numpy._core.multiarray", "_reconstruct"))))),
    "millions of short texts": lambda: zipped(b"](" + rare(b"\x8c\x02" + "\N{GREEK SMALL LETTER PI}".encode()) + b"e."),
    "millions of keys": lambda: zipped(b"}(" + b"".join(b"J" + struct.pack("<i", i + 1000) + b"N" for i in range(limits.PICKLE_RARE // 2 + 1)) + b"u."),
    "keys of three million segments": lambda: header(b"{" + b",".join(entry_of(f"{i}" + ".a" * 255) for i in range(12_000)) + b"}"),
    "a key of three thousand segments": lambda: safetensors_of(".".join("a" * 3000)),
    "a key of a million characters": lambda: safetensors_of("a" * 1_000_000),
    "sizes that collide": lambda: zipped(STORED + b"q\x000" + colliding(b"K\x01K\x01K\x01\x87", 4000, strides=False), **SIX_FLOATS),
    "half a million records": lambda: many_records(limits.ZIP_ENTRIES + 1),
}  # fmt: skip
"""Files that take a while to make, or are large."""


def entry_of(key: str) -> bytes:
    return b'"%b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % key.encode()


def safetensors_of(key: str) -> bytes:
    return header(b"{" + entry_of(key) + b"}")


def many_records(number: int) -> bytes:
    """An archive as torch writes it, with records of no bytes."""
    records, directory = bytearray(), bytearray()
    for i in range(number):
        name = b"a/data/%d" % i
        at = len(records)
        records += struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), 0) + name
        records += struct.pack("<4s3L", b"PK\7\x08", 0, 0, 0)
        directory += (
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, at) + name
        )
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, len(directory), len(records))
    end += struct.pack("<4sLQL", b"PK\6\7", 0, len(records) + len(directory), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return bytes(records + directory + end)


FILES = {
    "long names in a script": lambda: long_script_names(1 << 20, 13),
    "a long path to many tensors of a script": lambda: long_script_paths(290_000, True),
    "a long path to many modules of a script": lambda: long_script_paths(250_000, False),
    "a persistent id of itself": lambda: zipped(BOMB + b"Q."),
    "a storage of itself": lambda: zipped(b"(X\x07\x00\x00\x00storage" + BOMB + b"X\x01\x00\x00\x000NK\x01tQ."),
    "an object named by a tuple of itself": lambda: zipped(BOMB + b")R."),
    "an extra that is a tuple of itself": lambda: zipped(b"}X\x01\x00\x00\x00a" + BOMB + b"s."),
    "a tensor of a type that is a tuple of itself": lambda: zipped(b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_meta_tensor_no_storage\n(" + BOMB + b")tRs."),
    "modules shared by modules": lambda: zipped(shared_modules(40)),
    "millions of empty mappings": lambda: zipped(rare(b"}") + b"."),
    "millions of memos": lambda: zipped(b"N" + rare(b"\x94") + b"."),
    "a million marks": lambda: zipped(b"(" * 1_000_000),
    "a million tuples deep": lambda: zipped(b")" + b"\x85" * (limits.PICKLE_OPS // 2) + b"."),
    "a tuple of itself as a key": lambda: zipped(b"})" + b"q\x00h\x00\x86" * 240 + b"Ns."),
    "billion laughs": lambda: zipped(b"}(X\x05\x00\x00\x00model" + laughs(200)[:-1] + b"u."),
    "a list that holds itself": lambda: zipped(b"}(X\x05\x00\x00\x00model]q\x00h\x00au."),
    "a mapping that holds itself": lambda: zipped(b"}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "a false length": lambda: zipped(b"\x8e" + struct.pack("<Q", 2**62) + b"."),
    "a memo index of four billion": lambda: zipped(b"Nr\xff\xff\xff\xff."),
    "a deflate bomb": lambda: zipped(b"N0" * limits.INFLATED_FREE + b"N.", zipfile.ZIP_DEFLATED),
    "a million records claimed": lambda: many_entries(2_000_000),
    "a safetensors header of a terabyte": lambda: struct.pack("<Q", 1 << 40) + b"{",
    "a deep safetensors header": lambda: struct.pack("<Q", 20_000_000) + b'{"a":' + b"[" * 19_999_995,
    "a safetensors header of numbers": lambda: struct.pack("<Q", 5_000_001) + b"{" + b'"a":' + b"9" * 4_999_995 + b"}",
    "text": lambda: b"hello\n" * 1000,
    "nothing": lambda: b"",
    "zeros": lambda: bytes(1_000_000),
    "only the legacy magic": lambda: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"}" * limits.PICKLE_RARE,
}  # fmt: skip
