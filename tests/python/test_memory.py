# SPDX-License-Identifier: Apache-2.0
"""Little memory: what a model takes beside its file, and what is said where there is too little."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import make_random_model as tool
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import GetModel
from program import SECONDS
from rwkv_edge import Model, _core, cli, model_file
from rwkv_edge.cli import terminal
from rwkv_edge.convert.policy import Types
from rwkv_edge.files import source
from rwkv_edge.files.form import amount

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")

# A model of 40 MB, and what it may take beside its file: state, logits and the buffers of 64 tokens
# 8 MB; the small matrices that a .pth holds turned 4 MB, and as much again while they are turned.
LAYERS, WIDTH, TOKENS = 12, 512, 100
BESIDE = 20 << 20

# Runs `body` with so much more of VmSize or VmData than the process has when all is imported and a
# first model has run.
CHILD = """
import mmap, resource, sys
from pathlib import Path
from rwkv_edge import Model, _core, cli, convert, describe, bench
from rwkv_edge.files.source import MappedFile

def run(path):
    session = Model(path, threads=1).session()
    return session.feed([1] * {tokens}).sum() + session.feed([2]).sum()

run(None)
kind, field, path = resource.{limit}, "{field}", sys.argv[1]
lines = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
resource.setrlimit(kind, (used + {room}, used + {room}))
try:
    mmap.mmap(-1, used + {room}, mmap.MAP_PRIVATE)
    sys.exit("limits do not hold here")
except OSError:
    pass
{body}
"""
FIELDS = {"RLIMIT_AS": "VmSize:", "RLIMIT_DATA": "VmData:"}


def limited(limit: str, room: int, body: str, path: Path) -> subprocess.CompletedProcess[str]:
    script = CHILD.format(tokens=TOKENS, limit=limit, field=FIELDS[limit], room=room, body=body)
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if "limits do not hold here" in done.stderr:
        pytest.skip("this system does not enforce limits of memory")
    return done


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    size = tool.Size(LAYERS, WIDTH, (32, 32, 32, 64), vocab=300)
    paths = {"gguf": folder / "model.gguf", "pth": folder / "model.pth"}
    tool.write_gguf(paths["gguf"], size, 1, Types.choose("q8_0", None, None))
    tool.write_pth(paths["pth"], size, 1)
    assert all(path.stat().st_size > 1.9 * BESIDE for path in paths.values())
    return paths


@pytest.fixture(scope="module")
def huge(models: dict[str, Path]) -> Path:
    """A model twice as large as this machine's memory: all but the beginning is a hole."""
    path = models["gguf"].with_name("huge.gguf")
    path.write_bytes(models["gguf"].read_bytes())
    os.truncate(path, 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return path


@pytest.mark.parametrize("form", ["gguf", "pth"])
def test_weights_are_the_file_and_take_no_memory(models: dict[str, Path], form: str) -> None:
    done = limited("RLIMIT_DATA", BESIDE, "print(run(path))", models[form])
    assert (done.returncode, done.stderr) == (0, "")
    assert np.isfinite(float(done.stdout))


@pytest.mark.parametrize("form", ["gguf", "pth"])
def test_weights_are_there_once(models: dict[str, Path], form: str) -> None:
    size = models[form].stat().st_size
    done = limited("RLIMIT_AS", size + BESIDE, "print(run(path))", models[form])
    assert (done.returncode, done.stderr) == (0, "")


def test_all_logits_are_there_once(tmp_path: Path) -> None:
    """A row of the World vocabulary for each of 64 tokens: 16 MiB, and what little a step needs."""
    path, size = tmp_path / "model.gguf", tool.Size(1, 64, (32,) * 4, vocab=1 << 16)
    tool.write_gguf(path, size, 1, Types.choose("q8_0", None, None))
    body = "print(Model(path, threads=1).session().feed([1] * 64, logits='all').shape)"
    done = limited("RLIMIT_DATA", 64 * size.vocab * 4 + (6 << 20), body, path)
    assert (done.stdout, done.stderr) == ("(64, 65536)\n", "")


def test_a_chat_of_100000_tokens_takes_no_more_memory(tmp_path: Path) -> None:
    """Less than 1 MB from a fifth of it on, its text included; states before its turns would take
    seven. Fed at once or token by token, what it has read gives the same bits."""
    script = """
import sys
from pathlib import Path
from rwkv_edge import Conversation, Model

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

model = Model(sys.argv[1], threads=1)
chat, read, taken = Conversation(model), 0, []
while read < 100_000:
    list(chat.ask("some words " * 70, max_tokens=20, top_p=0.9))
    read += chat.work.read + chat.work.written
    if read >= 20_000:
        taken.append(anonymous())
print(len(taken) * chat.session.state.data.nbytes, len(chat.tokens), max(taken) - taken[0])
at_once, one_by_one = model.session(), model.session()
at_once.read(chat.tokens)
for token in chat.tokens:
    one_by_one.read([token])
states = [each.state for each in (chat.session, at_once, one_by_one)]
assert len({(state.data.tobytes(), state.output.tobytes()) for state in states}) == 1
"""
    tool.write_gguf(
        tmp_path / "model.gguf",
        tool.Size(4, 64, (32,) * 4, vocab=300),
        1,
        Types.choose("q8_0", None, None),
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model.gguf")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    states, tokens, grown = map(int, found.stdout.split())
    assert tokens >= 100_000
    assert states > 6 << 20  # of the turns that count
    assert grown < 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such pools")
def test_threads_share_two_pools_of_memory(tmp_path: Path) -> None:
    child = """
import ctypes
import sys
import threading
from rwkv_edge import _core

def work():
    stay.append(bytearray(1000))
    everyone.wait()

_core.share_memory_pools()
stay, everyone = [], threading.Barrier(9)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
everyone.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""
    found = tmp_path / "pools.xml"
    subprocess.run([sys.executable, "-c", child, str(found)], timeout=SECONDS, check=True)
    assert found.read_text().count("<heap nr=") == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators cannot")
def test_memory_that_a_thread_no_longer_uses_is_given_back() -> None:
    """Between blocks that stay, an allocator keeps what was freed."""
    child = """
import threading
from pathlib import Path
from rwkv_edge import _core

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

def work():
    blocks = [bytearray(b"x") * (64 << 10) for _ in range(800)]
    stay.extend(blocks[19::20])

stay = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
before = anonymous()
_core.give_back_memory()
print(before - anonymous())
"""
    command = [sys.executable, "-c", child]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert int(done.stdout) > 40 << 20  # of the 47.5 MiB that were freed


def test_weights_can_be_dropped_at_any_time(models: dict[str, Path]) -> None:
    """Their pages are those of the file, and clean, so none of them ever goes to swap."""
    script = (
        "import sys; from pathlib import Path; from rwkv_edge import Model\n"
        "session = Model(sys.argv[1], threads=1).session(); session.feed([1])\n"
        "print(Path('/proc/self/smaps').read_text())"
    )
    path = models["gguf"]
    out = subprocess.check_output([sys.executable, "-c", script, str(path)], text=True)
    lines = iter(out.splitlines())
    found = dict.fromkeys(("Rss:", "Anonymous:", "Private_Dirty:", "Shared_Dirty:", "Swap:"), 0)
    for line in lines:
        if line.endswith(str(path)):
            for name, kib, *_ in map(str.split, lines):
                if name in found:
                    found[name] += int(kib) << 10
                if name == "VmFlags:":
                    break
    assert found.pop("Rss:") > 0.9 * path.stat().st_size
    assert found == dict.fromkeys(found, 0)


def test_a_file_larger_than_memory_opens(models: dict[str, Path], huge: Path) -> None:
    with huge.open("rb") as file:
        try:
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()
        except (OSError, ValueError) as error:
            pytest.skip(f"32 bits, or emulation, does not map {huge.stat().st_size} bytes: {error}")
    one, other = (Model(path, threads=1).session().feed([1, 2]) for path in (models["gguf"], huge))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "arguments",
    [["chat"], ["generate", "-p", "x"], ["info"], ["bench"], ["quantize", "OUT", "--type", "f16"]],
    ids=lambda arguments: arguments[0],
)
def test_too_few_addresses(huge: Path, arguments: list[str]) -> None:
    command, *rest = (str(huge.with_name("out")) if a == "OUT" else a for a in arguments)
    done = limited("RLIMIT_AS", 1 << 30, f"cli.main([{command!r}, path, *{rest!r}])", huge)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"Error: {huge}: its {huge.stat().st_size} bytes do not fit in the address space "
        "of this process, which `ulimit -v` limits to "
    )
    assert done.stderr.endswith(": raise that limit, or take a smaller model or type\n")
    assert done.stderr.count("\n") == 1


def test_more_threads_than_the_system_gives(models: dict[str, Path]) -> None:
    body = "try: Model(path, threads=1024)\nexcept OSError as error: print(error)"
    done = limited("RLIMIT_AS", 1 << 30, body, models["gguf"])
    assert re.match(r"thread \d+ of 1024 does not start, so ask for fewer: ", done.stdout)


def test_too_few_addresses_to_convert(huge: Path) -> None:
    done = limited("RLIMIT_AS", 1 << 30, "MappedFile(Path(path))", huge)
    assert f"its {huge.stat().st_size} bytes do not fit in the address space" in done.stderr
    assert f"'{huge}'" in done.stderr


def test_what_cannot_be_mapped_is_not_called_too_large() -> None:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # has a size, and cannot be mapped
    if not path.is_file():
        pytest.skip(f"no {path}")
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)) as caught:
        source.MappedFile(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, str(path))


@pytest.mark.parametrize("room", [1 << 18, 3 << 20])
def test_too_little_memory_for_a_session(models: dict[str, Path], room: int) -> None:
    body = "cli.main(['generate', path, '-p', 'x' * 99, '-t', '1'])"
    done = limited("RLIMIT_DATA", room, body, models["gguf"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(("Error: no memory left for the engine", "Error: not enough mem"))
    assert done.stderr.endswith("a smaller model or fewer threads take less\n")
    assert done.stderr.count("\n") == 1


def test_too_little_memory_to_measure_its_speed(models: dict[str, Path]) -> None:
    """The least that is read is 8 MiB."""
    body = "cli.main(['bench', path, '-t', '1'])"
    done = limited("RLIMIT_DATA", 4 << 20, body, models["gguf"])
    assert done.returncode == 1
    assert "MiB that measuring its speed takes\n" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_long_chat_takes_no_more_memory_than_a_short_one() -> None:
    """A short form of `tools/torture.py long`. A state that were kept for each turn would take
    3 MB here."""
    tool = Path(__file__).parents[2] / "tools" / "torture.py"
    command = [sys.executable, str(tool), "long", "4000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_python_lacks_is_a_line_too() -> None:
    assert terminal.error_text(MemoryError()).startswith("not enough memory: ")
    assert terminal.error_text(MemoryError("Unable to allocate")) == "Unable to allocate"


def test_available_memory() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < _core.available_memory() <= physical


def test_hint_where_weights_exceed_memory(
    tiny_model: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model("q4_0", "d256")[0]
    file = model_file.open_model_file(path)
    needed = model_file.bytes_per_token(file)
    table = next(t.nbytes for t in file.tensors if t.name == "token_embd.weight")
    assert needed == sum(t.nbytes for t in file.tensors) - table
    monkeypatch.setattr(model_file, "available_memory", lambda: needed)
    assert Model(path).hint is None
    monkeypatch.setattr(model_file, "available_memory", lambda: needed - 1)
    result = CliRunner().invoke(cli.main, ["generate", str(path), "-p", "x", "-n", "1"])
    assert result.exit_code == 0
    assert result.stderr.startswith(
        f"{path.name}: each token reads {amount(needed)} of weights, and there is "
        f"memory for {amount(needed - 1)}, so they come from the disk each time; "
    )
    assert result.stderr.count("\n") == 1
