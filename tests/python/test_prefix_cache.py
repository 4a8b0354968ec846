# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: equal bits, never another text's, within its budgets, whatever is broken."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import tiny
import torture
from conftest import GetModel
from program import run
from refusal import refuses
from rwkv_edge import (
    Conversation,
    FormatError,
    Model,
    PrefixCache,
    Session,
    State,
    _core,
    prefix_cache,
)
from rwkv_edge.files import output

SYSTEM = "System: Be brief.\n\n"
TURN = "User: the User\n\nAssistant: yes。\n\n"


@pytest.fixture
def model(tiny_model: GetModel) -> Model:
    return Model(tiny_model("f32", "d128")[0])


def bits(session: Session) -> tuple[bytes, bytes, int | None]:
    state = session.state
    assert state.output is not None
    return state.data.tobytes(), state.output.tobytes(), state.tokens


def right(model: Model, *segments: str) -> tuple[bytes, bytes, int | None]:
    session = model.session()
    for segment in segments:
        session.read(model.tokenizer.encode(segment))
    return bits(session)


def count(model: Model, *segments: str) -> int:
    return sum(len(model.tokenizer.encode(segment)) for segment in segments)


def read(cache: PrefixCache, model: Model, *segments: str) -> int:
    """Read them, check the bits, and return how many tokens came from the cache."""
    session = model.session()
    found = cache.read(session, segments)
    assert bits(session) == right(model, *segments)
    return found


def inside(folder: Path) -> Path:
    return folder / "states-1"


def states(folder: Path) -> list[Path]:
    return sorted(inside(folder).glob("*.state"))


@contextmanager
def index(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(inside(folder) / "index.sqlite")) as connection, connection:
        yield connection


# ---- equal bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(tiny.VERSIONS))
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_hit_has_the_bits_of_a_reading(
    tiny_model: GetModel, tmp_path: Path, version: str, where: str
) -> None:
    model = Model(tiny_model("f32", "d128", version)[0])
    cache = PrefixCache(tmp_path if where == "disk" else None)
    assert read(cache, model, SYSTEM, TURN) == 0
    if where == "disk":
        cache = PrefixCache(tmp_path)  # as another process has it
    one, other = model.session(), model.session()
    assert cache.read(one, [SYSTEM, TURN]) == count(model, SYSTEM, TURN)
    for segment in (SYSTEM, TURN):
        other.read(model.tokenizer.encode(segment))
    assert bits(one) == bits(other)
    texts = ["".join(s.generate("", max_tokens=9, seed=1, lookup=3)) for s in (one, other)]
    assert texts[0] == texts[1]
    assert bits(one) == bits(other)


def test_segments_are_shared(model: Model) -> None:
    """The longest beginning that ends where a segment does."""
    cache = PrefixCache()
    assert read(cache, model, SYSTEM, TURN) == 0
    assert read(cache, model, SYSTEM, "User: a\n\n", TURN) == count(model, SYSTEM)
    assert read(cache, model, SYSTEM, "User: a\n\n") == count(model, SYSTEM, "User: a\n\n")
    assert read(cache, model, SYSTEM, TURN, TURN) == count(model, SYSTEM, TURN)
    assert read(cache, model, TURN) == 0


def test_a_segment_is_encoded_by_itself(model: Model) -> None:
    """The same letters in one piece are other tokens here, and so another text."""
    known = map(model.tokenizer.token_bytes, range(model.n_vocab))
    whole = next(data.decode() for data in known if len(data) > 1 and data.isascii())
    pieces = [whole[:1], whole[1:]]
    tokens = [t for piece in pieces for t in model.tokenizer.encode(piece)]
    assert tokens != model.tokenizer.encode(whole)
    cache = PrefixCache()
    read(cache, model, *pieces)
    session = model.session()
    assert cache.read(session, [whole]) == 0
    assert bits(session) == right(model, whole)
    # Cut in another way, the same tokens are the same text.
    assert cache.read(session, [tokens]) == len(tokens)
    assert cache.read(session, [np.array(tokens), []]) == len(tokens)
    assert bits(session) == right(model, *pieces)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        cache.read(session, [[1], [model.n_vocab]])
    assert bits(session) == right(model, *pieces)


# Of PrefixCache, or of its `read`: the argument, its value, and the error.
BAD_ARGUMENTS: list[tuple[str, object, str]] = [
    ("memory_bytes", "x", "memory_bytes: found 'x', expected a whole number"),
    ("memory_bytes", None, "memory_bytes: found None, expected a whole number"),
    ("memory_bytes", 1.5, "memory_bytes: found 1.5, expected a whole number"),
    ("memory_bytes", -1, "memory_bytes: found -1, expected at least 0"),
    ("disk_bytes", "x", "disk_bytes: found 'x', expected a whole number"),
    ("disk_bytes", None, "disk_bytes: found None, expected a whole number"),
    ("disk_bytes", 1.5, "disk_bytes: found 1.5, expected a whole number"),
    ("disk_bytes", -1, "disk_bytes: found -1, expected at least 0"),
    ("folder", 5, "folder: found 5, expected a path"),
    ("folder", b"a", "folder: found b'a', expected a path"),
    ("session", None, "session: found None, expected a Session"),
    ("segments", "abc", "segments: found 'abc', expected a list of segments"),
    ("segments", b"abc", "segments: found b'abc', expected a list of segments"),
    ("segments", 5, "segments: found 5, expected a list of segments"),
    ("segments", ["\ud800"], "text: found '\\ud800', expected characters that UTF-8 has"),
    ("start", "x", "start: found 'x', expected a State, as State.load(path) gives"),
    ("salt", "x", "salt: found 'x', expected bytes"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_once(
    model: Model, tmp_path: Path, name: str, value: object, message: str
) -> None:
    session = model.session()
    session.read([1, 2])
    before = bits(session)
    kind: type[Exception] = ValueError if "at least" in message or "UTF" in message else TypeError
    given: dict[str, Any] = {name: value}
    call: Callable[..., object] = PrefixCache().read
    if name.endswith("_bytes") or name == "folder":
        call, given = PrefixCache, {"folder": tmp_path / "cache", **given}
    else:
        given = {"session": session, "segments": ["a"], **given}
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call(**given)
    assert bits(session) == before
    assert not (tmp_path / "cache").exists()


def test_nothing_to_read(model: Model) -> None:
    session = model.session()
    session.read([1, 2])
    assert PrefixCache().read(session, ["", []]) == 0
    assert session.tokens == 0


def test_a_session_that_began_elsewhere(model: Model, tmp_path: Path) -> None:
    """Where a text begins decides what it leads to, and is part of the key."""
    before = model.session()
    before.read([5, 6, 7])
    kept = before.state
    tuned_file = ck.write(tmp_path, ck.pth_of(tiny.random_states(tiny.SHAPES["d128"], 3)), "t.pth")
    starts = [
        None,
        State.load(tuned_file),
        kept,
        replace(kept, tokens=9),
        replace(kept, output=None),
    ]
    cache = PrefixCache(tmp_path / "cache")
    for i in range(2):
        for start in starts:
            session, expected = model.session(), model.session(start)
            known = cache.read(session, [SYSTEM], start=start)
            assert known == (count(model, SYSTEM) if i else 0)
            expected.read(model.tokenizer.encode(SYSTEM))
            assert bits(session) == bits(expected)
    other = replace(kept, fingerprint="0" * 64)
    session = model.session()
    with refuses(FormatError, "this state", "of another model"):
        cache.read(session, [SYSTEM], start=other)
    assert session.tokens == 0


def test_an_interrupt_leaves_the_session_where_it_was(model: Model) -> None:
    session = model.session()
    session.read([1, 2, 3])
    before = bits(session)
    cache = PrefixCache()
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if done >= total - 1:
            raise KeyboardInterrupt

    first, second = [1] * 200, [2] * 65
    with pytest.raises(KeyboardInterrupt):
        cache.read(session, [first, [4], second], progress=lambda *_: progress(264, 265))
    assert bits(session) == before
    told.clear()
    assert cache.read(session, [first]) == 0
    assert cache.read(session, [first, [4], second], progress=lambda *a: told.append(a)) == 200
    assert told == sorted(told)
    assert {total for _, total in told} == {66}


def test_what_was_generated_before_is_over(model: Model) -> None:
    session = model.session()
    pieces = session.generate("the", max_tokens=50, seed=1)
    next(pieces)
    PrefixCache().read(session, [SYSTEM])
    assert not list(pieces)
    assert bits(session) == right(model, SYSTEM)


# ---- budgets ------------------------------------------------------------------------------------


def test_the_longest_unused_goes_first(model: Model) -> None:
    read(cache := PrefixCache(), model, "a")
    size = cache._used
    cache = PrefixCache(memory_bytes=3 * size + 100)
    for text in "abc":
        assert read(cache, model, text) == 0
    assert read(cache, model, "a") == 1
    assert read(cache, model, "d") == 0
    assert [read(cache, model, text) for text in "acd"] == [1, 1, 1]
    assert read(cache, model, "b") == 0
    assert cache._used == sum(entry.nbytes for entry in cache._kept.values()) <= 3 * size + 100


def test_what_exceeds_memory_is_not_kept(model: Model) -> None:
    cache = PrefixCache(memory_bytes=1000)
    assert [read(cache, model, "a") for _ in range(2)] == [0, 0]
    assert not cache._kept


def test_many_segments_take_no_copies_of_the_text(model: Model) -> None:
    """Of a text in a thousand parts there were a thousand copies of its beginnings, of 2 KB each
    on average; the tokens take 4 KB."""
    segments = ["a"] * 1000
    read(cache := PrefixCache(memory_bytes=0), model, *segments[:1])
    session = model.session()
    tracemalloc.start()
    cache.read(session, segments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bits(session) == right(model, *segments)
    assert peak < 1_000_000


def test_a_budget_on_disk(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    read(PrefixCache(tmp_path / "first"), model, "a")
    (file,) = states(tmp_path / "first")
    cache = PrefixCache(tmp_path, memory_bytes=0, disk_bytes=3 * file.stat().st_size + 100)
    for text in "abc":
        assert read(cache, model, text) == 0
        now += 100
    assert read(cache, model, "a") == 1  # which counts as a use
    now += 100
    assert read(cache, model, "d") == 0
    assert len(states(tmp_path)) == 3
    assert [read(cache, model, text) for text in "acd"] == [1, 1, 1]
    assert read(cache, model, "b") == 0
    small = PrefixCache(tmp_path / "small", memory_bytes=0, disk_bytes=1000)
    assert [read(small, model, "a") for _ in range(2)] == [0, 0]
    assert not states(tmp_path / "small")


def test_what_is_used_in_memory_stays_on_disk(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A use that memory answers is one on disk, too; noted once a minute at most."""
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    read(PrefixCache(tmp_path / "first"), model, "a")
    (file,) = states(tmp_path / "first")
    cache = PrefixCache(tmp_path, disk_bytes=3 * file.stat().st_size + 100)

    def used() -> list[float]:
        with index(tmp_path) as connection:
            return [t for (t,) in connection.execute("SELECT used FROM states ORDER BY used")]

    for text in "abc":
        assert read(cache, model, text) == 0
        now += 100
    assert used() == [1e9, 1e9 + 100, 1e9 + 200]
    assert read(cache, model, "a") == 1
    assert used() == [1e9 + 100, 1e9 + 200, now]
    noted = now
    now += 59
    assert read(cache, model, "a") == 1
    assert used()[-1] == noted
    assert read(cache, model, "d") == 0  # in place of b
    assert [read(PrefixCache(tmp_path), model, text) for text in "acd"] == [1, 1, 1]
    with index(tmp_path) as connection:  # another process writes
        connection.execute("BEGIN EXCLUSIVE")
        now += 1000
        assert read(cache, model, "a") == 1
    assert set(cache._noted) == set(cache._kept)


# ---- never a wrong hit --------------------------------------------------------------------------


def changed(folder: Path, name: str, at: int | None = None) -> Path:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 7)
    if at is not None:
        tensor = made.file.tensor("token_embd.weight")
        values = np.frombuffer(tensor.data, np.float32).copy()
        values[at] += 0.01
        tensor.data = values.tobytes()
    return tiny.write(folder, name, made)


def test_models_do_not_share(tmp_path: Path) -> None:
    """Not even those that only the time of the file tells apart: a weight that no fingerprint
    covers is another."""
    path = changed(tmp_path, "a.gguf")
    one = Model(path)
    assert read(cache := PrefixCache(tmp_path / "cache"), one, "a", "b") == 0
    assert read(cache, Model(path), "a", "b") == 2
    os.utime(path, ns=(1, 1))
    again = Model(path)
    assert again.fingerprint == one.fingerprint
    assert read(cache, again, "a", "b") == 0
    row = one.n_embd * one.tokenizer.encode("a")[0]
    others = [Model(changed(tmp_path, f"{at}.gguf", row + at)) for at in range(0, 128, 8)]
    unseen = [other for other in others if other.fingerprint == one.fingerprint]
    assert unseen  # or this tests nothing
    for other in others:
        assert read(cache, other, "a", "b") == 0


def test_levels_do_not_share(model: Model, tmp_path: Path) -> None:
    """Their bits may differ."""
    code = (
        "import sys; from rwkv_edge import Model, PrefixCache; model = Model(sys.argv[1]); "
        "print(PrefixCache(sys.argv[2]).read(model.session(), [[1, 2, 3]]), "
        "'numpy' in sys.modules)"
    )

    def child(level: str) -> str:
        command = [sys.executable, "-c", code, str(model.path), str(tmp_path)]
        environment = {**os.environ, "RWKV_EDGE_ISA": level}
        return subprocess.check_output(command, env=environment, text=True)

    levels = _core.isa_levels()
    for level in {levels[0], levels[-1]}:
        assert child(level) == "0 True\n"
        # Importing numpy takes longer than all the rest, so a hit does without.
        assert child(level) == "3 False\n"


def test_another_build_of_the_engine(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PrefixCache(tmp_path)
    read(cache, model, "a")
    (tmp_path / "_core.so").touch()
    monkeypatch.setattr(_core, "__file__", str(tmp_path / "_core.so"))
    assert read(cache, model, "a") == 0


def test_who_lacks_the_salt_finds_nothing(model: Model, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path)
    salts = [b"", b"one", b"other"]
    for expected in (0, 1):
        for salt in salts:
            assert cache.read(model.session(), ["a"], salt=salt) == expected
    assert len(states(tmp_path)) == 3


def test_equal_hashes_do_not_make_equal_texts(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if SHA-256 were broken: every key is the same, and every digest of a file too."""

    class Broken:
        def __init__(self, _data: bytes = b"") -> None: ...
        def update(self, _data: bytes) -> None: ...
        def digest(self) -> bytes:
            return bytes(32)

    assert model.fingerprint  # once and for all, before
    monkeypatch.setattr(hashlib, "sha256", Broken)
    for folder in (None, tmp_path):
        cache = PrefixCache(folder)
        assert read(cache, model, "a") == 0
        assert read(cache, model, "b") == 0
        assert read(cache, model, "a", "b") == 0


SPOILED: dict[str, Callable[[list[Path]], object]] = {
    "another text's file": lambda paths: paths[0].write_bytes(paths[1].read_bytes()),
    "a bit": lambda paths: paths[0].write_bytes(
        paths[0].read_bytes()[:-2000] + b"\x01" + paths[0].read_bytes()[-1999:]
    ),
    "cut": lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:-500]),
    "empty": lambda paths: paths[0].write_bytes(b""),
    "gone": lambda paths: paths[0].unlink(),
    "f16": lambda paths: State.load(paths[0]).save(paths[0], type="f16"),
    "without its output": lambda paths: replace(State.load(paths[0]), output=None).save(paths[0]),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_read_again(model: Model, tmp_path: Path, how: str) -> None:
    cache = PrefixCache(tmp_path, memory_bytes=0)
    for text in "abcd":
        read(cache, model, text)
    SPOILED[how](states(tmp_path))
    found = [read(cache, model, text) for text in "abcd"]
    assert sorted(found) == [0, 1, 1, 1]
    assert [read(cache, model, text) for text in "abcd"] == [1, 1, 1, 1]
    for path in states(tmp_path):
        State.load(path)


def test_a_wrong_row(model: Model, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, memory_bytes=0)
    for text in "abcd":
        read(cache, model, text)
    for change, hits in {
        "UPDATE states SET tokens = x'00000000'": 0,
        "UPDATE states SET tokens = (SELECT tokens FROM states ORDER BY key LIMIT 1)": 1,
        "UPDATE states SET digest = (SELECT digest FROM states ORDER BY key LIMIT 1)": 1,
        "UPDATE states SET root = 3, bytes = 'x', used = 'y'": 0,
        "UPDATE states SET key = '../' || key": 0,
        "UPDATE states SET key = x'ff' || key": 0,
    }.items():
        with index(tmp_path) as connection:
            connection.execute(change)
        assert sum(read(cache, model, text) for text in "abcd") == hits, change
        assert [read(cache, model, text) for text in "abcd"] == [1] * 4, change


# ---- what others do at the same time ------------------------------------------------------------


def test_what_a_killed_process_left_is_removed(model: Model, tmp_path: Path) -> None:
    read(PrefixCache(tmp_path), model, "a")
    folder = inside(tmp_path)
    left = [folder / f"{'0' * 64}.state", folder / f".{'1' * 64}.state.0123abcd.part"]
    others = [folder / "notes.txt", folder / "a.state"]
    for path in left + others:
        path.touch()
    read(PrefixCache(tmp_path), model, "b")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_a_damaged_index_begins_anew(model: Model, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, memory_bytes=0)
    for damage in (b"no database, and long enough for a header " * 40, b""):
        read(cache, model, "a", "b")
        (inside(tmp_path) / "index.sqlite").write_bytes(damage)
        assert read(cache, model, "a", "b") == 0
        assert read(cache, model, "a", "b") == 2
        assert len(states(tmp_path)) == 2


def test_an_index_of_others_is_a_warning(model: Model, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, memory_bytes=0)
    read(cache, model, "a")
    with index(tmp_path) as connection:
        connection.execute("DROP TABLE states")
        connection.execute("CREATE TABLE states (x)")
    with pytest.warns(UserWarning, match=r"states-1: a state was not kept, .*: no such column"):
        assert read(cache, model, "a") == 0


def test_a_state_of_nan_is_a_warning(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an overflow in a model of f16 leaves it."""
    finite = np.isfinite
    monkeypatch.setattr(np, "isfinite", lambda values: finite(values) & False)
    with pytest.warns(UserWarning, match="was not kept, .* holds NaN or infinity"):
        assert read(PrefixCache(tmp_path), model, "a") == 0


def test_a_locked_index(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process writes does not keep this one from reading."""
    monkeypatch.setattr(prefix_cache, "PATIENCE", 0.05)
    monkeypatch.setattr(prefix_cache, "HASTE", 0.02)
    monkeypatch.setattr(prefix_cache, "SOON", -10.0)
    cache = PrefixCache(tmp_path, memory_bytes=0)
    read(cache, model, "a")
    with index(tmp_path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert read(cache, model, "a") == 1
        with pytest.warns(UserWarning, match=r"not kept, so it is read again: database is locked"):
            assert read(cache, model, "b") == 0
        # A process that is stopped in the middle is waited for once, and not for each segment.
        with pytest.warns(UserWarning, match="database is locked") as caught:
            assert read(cache, model, "c", "d", "e") == 0
        assert len(caught) == 1
    with index(tmp_path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.warns(UserWarning, match="database is locked"):
            assert read(cache, model, "a") == 0
    assert read(cache, model, "a") == 1


def test_a_full_disk_is_a_warning(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PrefixCache(tmp_path, memory_bytes=0)
    read(cache, model, "a")

    def write(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.state")

    with monkeypatch.context() as patch:
        patch.setattr(output.OutputFile, "write", write)
        with pytest.warns(UserWarning, match=r"not kept, .* No space left on device"):
            assert read(cache, model, "b") == 0
    assert [read(cache, model, text) for text in "ab"] == [1, 0]
    assert len([*inside(tmp_path).iterdir()]) == 3


@pytest.mark.posix("modes of files")
def test_only_the_owner_reads_and_writes(model: Model, tmp_path: Path) -> None:
    read(PrefixCache(tmp_path / "new" / "folder"), model, "a")
    folder = inside(tmp_path / "new" / "folder")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match="others can write there"):
        PrefixCache(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        PrefixCache(tmp_path / "file")


def test_threads_share_a_cache(model: Model, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, memory_bytes=200_000)
    expected = {text: right(model, text, "x") for text in "abcdefgh"}
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = Random(seed)
        for _ in range(30):
            text = chance.choice("abcdefgh")
            session = model.session()
            cache.read(session, [text, "x"])
            if bits(session) != expected[text]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache._used == sum(entry.nbytes for entry in cache._kept.values())


def test_processes_share_a_folder_and_one_is_killed(tmp_path: Path) -> None:
    """A short form of `tools/torture.py cache`, which says itself what is wrong."""
    counts = torture.hammer(tmp_path, 10, Random(1))
    assert counts["killed"] == 10
    assert counts["from the cache"] > 0


def test_a_key_is_a_sha_256_of_all_that_decides(model: Model) -> None:
    """Written down independently, so that no part is left out by mistake."""
    cache = PrefixCache()
    cache.read(model.session(), [[1, 2], [3]], salt=b"s")
    engine = Path(str(_core.__file__))
    parts = [b"rwkv-edge, form 1", b"s", model.fingerprint.encode()]
    for path in (model.path, engine):
        info = path.stat()
        parts.append(f"[('', {info.st_size}, {info.st_mtime_ns})]".encode())
    parts.insert(4, f"cpu {_core.isa()}".encode())
    root = hashlib.sha256(
        b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    ).digest()
    for tokens in ([1, 2], [1, 2, 3]):
        key = hashlib.sha256(root + np.array(tokens, "<i4").tobytes()).digest()
        assert cache._kept[key].tokens == np.array(tokens, "<i4").tobytes()


# ---- in a chat ----------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [False, True])
def test_conversations_share_a_system_text(model: Model, tmp_path: Path, begin: bool) -> None:
    before = model.session()
    before.read([5, 6, 7])
    start = before.state if begin else None
    told: list[int] = []

    class Listening(PrefixCache):
        def read(self, *arguments: Any, **options: Any) -> int:
            told.append(super().read(*arguments, **options))
            return told[-1]

    chats = []
    for cache in (None, Listening(tmp_path), Listening(tmp_path)):
        chat = Conversation(model, system="Be brief.", state=start, cache=cache)
        texts = ["".join(chat.ask("hello", max_tokens=9, seed=1))]
        texts.append("".join(chat.ask("and now?", max_tokens=9, seed=2)))
        chats.append((texts, bits(chat.session)))
        chat.reset()
        assert bits(chat.session)[2] == count(model, "System: Be brief.\n\n") + 3 * begin
    assert chats[0] == chats[1] == chats[2]
    size = count(model, "System: Be brief.\n\n")
    assert told[0] == 0
    assert set(told[1:]) == {size}


def test_a_system_text_in_a_file(tmp_path: Path) -> None:
    """`chat` of another process has read it."""
    (tmp_path / "system.txt").write_text("Be brief. " * 200, encoding="utf-8")
    command = ["chat", "--system-file", str(tmp_path / "system.txt"), "--seed", "1"]
    cached = [*command, "--cache-dir", str(tmp_path / "cache")]
    verbose = [*cached, "--verbose"]
    outputs = [
        run(*arguments, stdin="Hello\n/tokens\n")
        for arguments in (command, verbose, verbose, cached)
    ]
    assert [done.returncode for done in outputs] == [0] * 4
    assert len({done.stdout for done in outputs}) == 1
    assert outputs[0].stderr == outputs[3].stderr == b""
    for done, how in zip(outputs[1:3], ("read", "from the cache"), strict=True):
        line = rf"\(system text: \d{{3,}} tokens {how} in \d+\.\d{{3}} s\)"
        assert re.match(line, done.stderr.decode())
    (file,) = states(tmp_path / "cache")
    assert (State.load(file).tokens or 0) > 500
    inside(tmp_path / "cache").joinpath("index.sqlite").unlink()
    inside(tmp_path / "cache").joinpath("index.sqlite").mkdir()
    done = run(*cached, stdin="Hello\n/tokens\n")
    assert done.stdout == outputs[0].stdout
    assert re.fullmatch(rb"Warning: [^\n]*: a state was not kept, so [^\n]*\n", done.stderr)
    both = run("chat", "--system", "x", "--system-file", str(tmp_path / "system.txt"))
    assert both.returncode == 2
    assert b"exclude each other" in both.stderr
