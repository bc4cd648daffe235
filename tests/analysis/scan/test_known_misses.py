"""Names, containers and streams of the kind that other scanners missed: each is unknown code.

After what the advisories of picklescan (github.com/mmaitre314/picklescan/security/advisories) and fickling
(github.com/trailofbits/fickling/security/advisories) tell of, and more of the same kind. No list is needed here.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptsurgeon as cs

from .hostile import CANARY, as_legacy, as_torch_zip, payload, short

SAID = """
_aix_support._read_cmd_output _osx_support._find_build_tool _osx_support._read_output _pyrepl.pager.pipe_pager
asyncio.unix_events._UnixSubprocessTransport asyncio.unix_events._UnixSubprocessTransport._start bdb.Bdb.run
bdb.Bdb.runcall bdb.Bdb.runeval builtins.help cProfile.run cProfile.runctx cProfile.Profile.runctx
code.InteractiveInterpreter.runcode ctypes.CDLL distutils.file_util.write_file doctest.debug_script doctest.testfile
ensurepip._run_pip ensurepip.bootstrap functools.reduce gc.get_objects http.client.HTTPSConnection
idlelib.autocomplete.AutoComplete.fetch_completions idlelib.autocomplete.AutoComplete.get_entity
idlelib.calltip.get_entity idlelib.calltip.Calltip.fetch_tip idlelib.debugobj.ObjectTreeItem.SetText
idlelib.pyshell.ModifiedInterpreter.runcode idlelib.pyshell.ModifiedInterpreter.runcommand
idlelib.run.Executive.runcode imaplib.IMAP4_stream importlib.import_module importlib.machinery.SourceFileLoader
lib2to3.pgen2.grammar.Grammar.loads lib2to3.pgen2.pgen.ParserGenerator.make_label logging.FileHandler
logging.config.listen marshal.loads multiprocessing.util.spawnv_passfds network.run
numpy.f2py.crackfortran._eval_length numpy.f2py.crackfortran.getlincoef numpy.f2py.crackfortran.myeval
numpy.f2py.crackfortran.param_eval numpy.f2py.diagnose.run_command numpy.load numpy.testing._private.utils.runstring
operator.attrgetter operator.methodcaller os.path.expanduser pathlib.Path.write_text pip.main pip._internal.main
pip._internal.cli.main.main pkgutil.resolve_name pkg_resources.run_script platform.popen profile.Profile.run
profile.Profile.runctx profile.run pty.spawn pydoc.locate pydoc.pipepager pydoc.tempfilepager runpy.run_path
runpy._run_code shutil.copyfile shutil.rmtree smtplib.SMTP socket.create_connection sqlite3.connect
ssl.get_server_certificate subprocess.getoutput sys.exit test.support.script_helper.assert_python_ok timeit.timeit
torch._dynamo.guards.GuardBuilder.get torch._inductor.codecache.compile_file
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression torch.hub.load
torch.jit.unsupported_tensor_ops.execWrapper torch.load torch.serialization.load torch.storage._load_from_bytes
torch.utils._config_module.ConfigModule.load_config torch.utils.bottleneck.__main__.run_autograd_prof
torch.utils.bottleneck.__main__.run_cprofile torch.utils.collect_env.run
torch.utils.data.datapipes.utils.decoder.basichandlers torch.utils.model_zoo.load_url trace.Trace.run
trace.Trace.runctx types.CodeType types.FunctionType unittest.mock._importer urllib.request.urlopen
uuid._get_command_stdout venv.create webbrowser.open zipimport.zipimporter
"""
NAMES = re.findall(r"\S+", SAID)


def spellings(name: str) -> dict[str, bytes]:
    """Where a dotted name may be cut: each place is another module, under which the same thing is found."""
    parts = name.split(".")
    found = {}
    for i in range(1, len(parts)):
        module, rest = ".".join(parts[:i]), ".".join(parts[i:])
        found[f"{module} {rest}"] = b"\x80\x04" + short(module) + short(rest) + b"\x93)R."
    return {**found, "line": f"c{'.'.join(parts[:-1])}\n{parts[-1]}\n(tR.".encode()}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_was_missed_is_unknown_code_wherever_it_is_cut(name: str) -> None:
    for how, stream in spellings(name).items():
        Path("x.pkl").write_bytes(stream)
        found = cs.scan("x.pkl")
        assert found.verdict is cs.Verdict.CODE, how
        assert [f"{use.module}.{use.name}" for use in found.found[0].uses] == [name]


def reduced(module: str, name: str) -> bytes:
    return b"\x80\x04" + short(module) + short(name) + b"\x93" + short("x") + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("..", "os.system"), ("torch..os", "system"), (".os", "system"), ("", "eval"), ("os ", "system"), ("OS", "system"), ("ｏｓ", "system"),
        ("torch", "os.system"), ("torch.serialization", "os.system"), ("torch._utils", "sys.modules"), ("torch", "hub.os.system"),
        ("collections", "_sys.modules"), ("collections", "OrderedDict.__init__.__globals__"), ("collections", "abc.sys"),
        ("builtins", "dict.__class__"), ("builtins", "object.__subclasses__"), ("builtins", "type.mro"), ("numpy", "dtype.__class__"),
        ("torch._utils.os", "system"), ("torch", "Tensor.__reduce__"), ("torch", "Size.__class__"), ("_codecs", "lookup"),
        ("asyncio.unix_events", "_UnixSubprocessTransport"), ("subprocess", "Popen.__init__"), ("pathlib", "PosixPath.unlink"),
    ],
)  # fmt: skip
def test_what_is_reached_through_a_known_module_is_unknown_code(module: str, name: str) -> None:
    """Subclasses, attributes of what is known, and modules that are spelled otherwise are not what is known."""
    for stream in (reduced(module, name), b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")R."):
        Path("x.pkl").write_bytes(stream)
        assert cs.scan("x.pkl").verdict is cs.Verdict.CODE


def changed(at: int, value: bytes, *, central: int = 0) -> bytes:
    """torch's archive with bytes put into the local header of its first record and, where it says, into the directory."""
    data = bytearray(as_torch_zip(payload()))
    data[at : at + len(value)] = value
    if central:
        begin = data.index(b"PK\1\2") + central
        data[begin : begin + len(value)] = value
    return bytes(data)


def packed(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", payload())
    return out.getvalue()


def in_a_numpy_record() -> bytes:
    header = b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + payload()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "bad checksum": ("x.pth", lambda: changed(14, b"\1\2\3\4", central=16)),
    "flag of encryption": ("x.pth", lambda: changed(6, b"\1\0", central=8)),
    "flag of patches": ("x.pth", lambda: changed(6, b"\x20\0", central=8)),
    "flag of encryption in one header": ("x.pth", lambda: changed(6, b"\1\0")),
    "other name in one header": ("x.pth", lambda: changed(30, b"Archive")),
    "false size in one header": ("x.pth", lambda: changed(22, b"\1\0\0\0")),
    "deflated": ("x.pth", lambda: packed(zipfile.ZIP_DEFLATED)),
    "legacy file by another name": ("pytorch_model.bin", lambda: as_legacy(payload())),
    "zip by another name": ("model.safetensors", lambda: as_torch_zip(payload())),
    "pickle in a record of another name": ("x.pth", lambda: as_torch_zip(pickle.dumps({}), **{"data/0": payload()})),
    "second stream": ("x.pkl", lambda: pickle.dumps(1) * 3 + payload()),
    "broken behind the call": ("x.pkl", lambda: payload()[:-1] + b"\xff\xff"),
    "magic number alone": ("x.pt", lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + payload(2)),
    "magic number said by a call": ("x.pt", lambda: payload(2)[:-1] + b"0" + pickle.dumps(0x1950A86A20F9469CFC6C, 2)[2:] + payload(2)),
    "array of objects": ("x.npy", in_a_numpy_record),
    "gzip": ("x.pkl.gz", lambda: gzip.compress(payload())),
    "bzip2": ("x.pkl.bz2", lambda: bz2.compress(payload())),
    "xz": ("x.pkl.xz", lambda: lzma.compress(payload())),
    "lzma": ("x.pkl.lzma", lambda: lzma.compress(payload(), lzma.FORMAT_ALONE)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_container_that_was_passed_over_is_unknown_code(name: str) -> None:
    path, make = FILES[name]
    Path(path).write_bytes(make())
    assert cs.scan(path).verdict is cs.Verdict.CODE
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    "data",
    [packed(zipfile.ZIP_BZIP2), packed(zipfile.ZIP_LZMA), b"7z\xbc\xaf\x27\x1c\0\4" + b"x" * 60, b"Rar!\x1a\7\1\0" + b"x" * 60,
     b"\x28\xb5\x2f\xfd" + b"x" * 60, b"\x04\x22\x4d\x18" + b"x" * 60],
    ids=["zip of bzip2", "zip of lzma", "7z", "rar", "zstd", "lz4"],
)  # fmt: skip
def test_what_is_packed_as_we_do_not_unpack_is_not_plain(data: bytes) -> None:
    Path("model.bin").write_bytes(data)
    assert not cs.scan("model.bin").whole
