# SPDX-License-Identifier: Apache-2.0
"""Pulling models by name from a hub that cuts, lies, redirects and refuses."""

from __future__ import annotations

import fcntl
import hashlib
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import GetModel
from fake_hub import COMMIT, FakeHub, serving, sha256
from program import PROGRAM, SECONDS
from rwkv_edge import hub, pull
from rwkv_edge.cli.pull import Speed, advice
from rwkv_edge.hub import HubError, names, remote

NAME = "hf:org/repo/sub/m.gguf"
DATA = random.Random(7).randbytes(400_000)
SETTINGS = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a pull waits between tries, without waiting."""
    found: list[float] = []
    monkeypatch.setattr("rwkv_edge.hub.remote.sleep", found.append)
    return found


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[FakeHub]:
    assert waits == []
    for name in (*SETTINGS, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeHub({"sub/m.gguf": DATA})) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_DOMAIN", found.url)
        yield found


def repository(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub" / "models--org--repo"


def part(tmp_path: Path) -> Path:
    return repository(tmp_path) / "blobs" / f"{sha256(DATA)}.incomplete"


def test_a_file_comes_into_the_hubs_cache(fake: FakeHub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = pull(NAME, progress=lambda *numbers: seen.append(numbers))
    assert path == repository(tmp_path) / "snapshots" / COMMIT / "sub/m.gguf"
    assert path.read_bytes() == DATA
    assert path.resolve() == repository(tmp_path) / "blobs" / sha256(DATA)
    assert (repository(tmp_path) / "refs" / "main").read_text() == COMMIT
    assert not part(tmp_path).exists()
    assert seen == sorted(seen)
    assert seen[-1] == (len(DATA), len(DATA))
    assert [entry.method for entry in fake.seen] == ["HEAD", "GET"]
    assert f"/resolve/{COMMIT}/" in fake.seen[1].path  # and not what `main` has become meanwhile


def test_what_is_here_is_used(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    name = hub.parse(NAME)
    assert name is not None
    assert hub.cached(name) is None
    path = pull(NAME)
    fake.seen.clear()
    assert pull(NAME) == path  # asks whether `main` has another file now
    assert [entry.method for entry in fake.seen] == ["HEAD"]
    fake.seen.clear()
    assert hub.cached(name) == path
    assert pull(f"{NAME}@{COMMIT}") == path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull(NAME) == path
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pull("hf:org/repo/other.gguf")
    assert fake.seen == []


def test_another_file_of_the_same_name_is_another_blob(fake: FakeHub) -> None:
    old = pull(NAME)
    fake.files["sub/m.gguf"], fake.headers["X-Repo-Commit"] = b"new", "f" * 40
    assert pull(NAME).read_bytes() == b"new"
    assert old.read_bytes() == DATA


@pytest.mark.parametrize("cut", [100_000, 399_999])
def test_a_cut_connection_goes_on(fake: FakeHub, cut: int) -> None:
    fake.cut = cut
    assert pull(NAME).read_bytes() == DATA
    starts = list(range(0, len(DATA), cut))
    assert fake.ranges_asked() == [f"bytes={start}-" if start else None for start in starts]


def test_a_pull_goes_on_where_it_stopped(fake: FakeHub, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done > 100_000:
            raise Stop

    with pytest.raises(Stop):
        pull(NAME, progress=stop)
    size = part(tmp_path).stat().st_size
    assert 100_000 < size < len(DATA)
    assert pull(NAME).read_bytes() == DATA
    assert fake.ranges_asked() == [None, f"bytes={size}-"]


def test_a_server_without_ranges_begins_anew(fake: FakeHub, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(DATA[:1000])
    fake.ranges = False
    assert pull(NAME).read_bytes() == DATA


def test_a_part_that_is_too_long_is_forgotten(fake: FakeHub, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(DATA + b"x")
    assert pull(NAME).read_bytes() == DATA
    assert fake.ranges_asked() == [None]


def test_damaged_bytes_are_found_and_removed(fake: FakeHub, tmp_path: Path) -> None:
    assert fake.files
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(b"damaged")
    with pytest.raises(HubError, match=f"{NAME}: the 400000 bytes .* expected {sha256(DATA)}"):
        pull(NAME)
    assert list((repository(tmp_path) / "blobs").iterdir()) == []
    assert not (repository(tmp_path) / "snapshots").exists()
    assert pull(NAME).read_bytes() == DATA


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"X-Linked-Etag": '"' + "0" * 64 + '"'}, "expected 0000"),
        ({"X-Linked-Size": "399999"}, "more came than the 399999 bytes"),
        ({"X-Linked-Size": "500000"}, "asked for bytes from 400000 of 500000"),
        ({"X-Linked-Size": "-1"}, "found the size -1"),
        ({"X-Linked-Size": "1e9"}, "found the size 1e9"),
        ({"X-Linked-Size": "9" * 5000}, "found the size 9"),
        ({"X-Linked-Size": "0"}, "found the size 0"),
        ({"X-Linked-Size": "900000000000000"}, "found the size 9"),
        ({"X-Linked-Etag": "../../../x"}, "found ../../../x as its SHA-256"),
        ({"X-Linked-Etag": None}, "found nothing as its SHA-256"),
        ({"X-Repo-Commit": "../../../../x"}, "does not say which commit"),
        ({"X-Repo-Commit": None}, "does not say which commit"),
    ],
)
def test_lies_in_headers(
    fake: FakeHub, headers: dict[str, str | None], text: str, tmp_path: Path
) -> None:
    fake.headers |= headers
    with pytest.raises(HubError, match=text) as caught:
        pull(NAME)
    assert str(caught.value).startswith(f"{NAME}: ")
    assert not (repository(tmp_path) / "snapshots").exists()


@pytest.mark.parametrize("found", ["bytes 7-399999/400000", "bytes 1000-399999/500000", "rubbish"])
def test_another_range_than_asked_for(fake: FakeHub, tmp_path: Path, found: str) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(DATA[:1000])
    fake.content_range = found
    with pytest.raises(HubError, match="asked for bytes from 1000 of 400000"):
        pull(NAME)
    assert part(tmp_path).read_bytes() == DATA[:1000]


def test_more_bytes_than_announced(fake: FakeHub, tmp_path: Path) -> None:
    fake.extra = b"more" * 1000
    with pytest.raises(HubError, match="more came"):
        pull(NAME)
    assert part(tmp_path).stat().st_size <= len(DATA)


def test_a_small_file_is_checked_as_git_has_it(fake: FakeHub) -> None:
    fake.files["sub/m.gguf"] = b"a vocabulary"
    digest = hashlib.sha1(b"blob 12\0a vocabulary").hexdigest()
    fake.headers |= {"X-Linked-Etag": None, "X-Linked-Size": None, "ETag": f'"{digest}"'}
    assert pull(NAME).read_bytes() == b"a vocabulary"
    fake.headers |= {"ETag": f'"{"0" * 40}"'}
    with pytest.raises(HubError, match="expected 0000"):
        pull(NAME)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "hf_secret"
    with pytest.raises(HubError, match=r"answers 401: .* HF_TOKEN"):
        pull(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    with serving(FakeHub(fake.files)) as other:
        fake.elsewhere = f"{other.url}/org/repo/resolve/x/sub/m.gguf?signature=1"
        other.cut = 100_000
        assert pull(NAME).read_bytes() == DATA
        assert {entry.method for entry in other.seen} == {"GET"}
        assert all("authorization" not in entry.headers for entry in other.seen)
        assert [entry.headers.get("range") for entry in other.seen][1] == "bytes=100000-"
    assert all(entry.headers["authorization"] == "Bearer hf_secret" for entry in fake.seen[1:])


def test_the_token_stays_on_the_same_host(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that was renamed."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    new = {"Location": "/org/repo/resolve/main/sub/m.gguf"}
    fake.refusals = [(307, new), (308, new)]
    assert pull(NAME).read_bytes() == DATA
    assert [entry.method for entry in fake.seen] == ["HEAD", "HEAD", "HEAD", "GET"]
    assert all(entry.headers["authorization"] == "Bearer hf_secret" for entry in fake.seen)


def test_the_token_is_found_where_the_hub_keeps_it(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_kept\n")
    fake.token = "hf_kept"
    assert pull(NAME).read_bytes() == DATA
    monkeypatch.setenv("HF_TOKEN", "hf_\nsecret")
    with pytest.raises(HubError) as caught:
        pull(NAME)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/", "//["])
def test_redirects_that_are_not_followed(fake: FakeHub, where: str) -> None:
    fake.elsewhere = where
    with pytest.raises(HubError, match=r"not safe|Invalid"):
        pull(NAME)


def test_a_circle_of_redirects(fake: FakeHub) -> None:
    fake.elsewhere = "/org/repo/resolve/main/sub/m.gguf"
    with pytest.raises(HubError, match="in a circle"):
        pull(NAME)
    assert len(fake.seen) <= 12


def test_no_redirect_leaves_tls() -> None:
    request = urllib.request.Request("https://hub.example/x", headers={"Authorization": "Bearer t"})

    def to(url: str) -> urllib.request.Request | None:
        return remote.Redirects().redirect_request(request, None, 302, "", {}, url)

    assert to("http://hub.example/x") is None
    same, other = to("https://hub.example/y"), to("https://hub.example:444/y")
    assert same is not None
    assert other is not None
    assert same.has_header("Authorization")
    assert not other.has_header("Authorization")


def test_busy_servers_are_asked_again(fake: FakeHub, waits: list[float]) -> None:
    fake.refusals = [(429, {"Retry-After": "7"}), (503, {}), (502, {"Retry-After": "soon"})]
    assert pull(NAME).read_bytes() == DATA
    assert waits == [7, 2, 4]


def test_a_server_that_is_busy_for_ever(fake: FakeHub, waits: list[float]) -> None:
    fake.refusals = [(503, {"Retry-After": "99999"})] * 50
    with pytest.raises(HubError, match="answers 503, also after 6 tries"):
        pull(NAME)
    assert waits == [60] * 5


def test_a_server_that_never_sends_much(fake: FakeHub, waits: list[float]) -> None:
    fake.cut = 10
    with pytest.raises(HubError, match="early, again and again"):
        pull(NAME)
    assert len(waits) == 5


def test_a_server_that_is_not_there(
    fake: FakeHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fake.url
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubError, match=r"127.0.0.1:1 cannot be reached"):
        pull(NAME)
    for url in ("nonsense", "http://[", "http://a b/"):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(HubError, match=NAME):
            pull(NAME)
    assert waits == []


def test_refusals(fake: FakeHub) -> None:
    with pytest.raises(
        HubError, match=r"has no such file; it has\n  hf:org/repo/sub/m.gguf  400 KB"
    ):
        pull("hf:org/repo/other.gguf")
    with pytest.raises(HubError, match="no such repository"):
        pull("hf:org/none/m.gguf")
    for code in (401, 403):
        fake.refusals = [(code, {})]
        with pytest.raises(HubError, match=f"answers {code}: org/repo does not exist, is private"):
            pull(NAME)
    fake.refusals = [(404, {"X-Error-Code": "RevisionNotFound"})]
    with pytest.raises(HubError, match="no revision 'old'"):
        pull(f"{NAME}@old")
    fake.refusals = [(418, {})]
    with pytest.raises(HubError, match="answers 418"):
        pull(NAME)


def test_a_repository_without_a_file_lists_its_models(fake: FakeHub) -> None:
    fake.files |= {"README.md": b"x", "b.pth": b"yy"}
    with pytest.raises(ValueError, match="names no file") as caught:
        pull("hf:org/repo@main")
    assert str(caught.value).splitlines()[1:] == [
        "  hf:org/repo/sub/m.gguf@main  400 KB",
        "  hf:org/repo/b.pth@main  2 bytes",
    ]
    assert fake.gets() == []


HOSTILE: list[Any] = [
    {"type": "file", "path": "../../../.bashrc.gguf", "size": 1},
    {"type": "file", "path": "/etc/x.gguf", "size": 1},
    {"type": "file", "path": "a\x1b[2J.gguf", "size": 1},
    {"type": "file", "path": "a\n.gguf", "size": 1},
    {"type": "file", "path": ["x.gguf"], "size": 1},
    {"type": "file", "path": "size.gguf", "size": -1},
    {"type": "file", "path": "size.gguf", "size": "1"},
    {"type": "directory", "path": "folder.gguf", "size": 0},
    "text",
    None,
]


def test_hostile_listings(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.listing = HOSTILE
    with pytest.raises(ValueError, match=r"which has\n  no file that may be a model$"):
        pull("hf:org/repo")
    fake.listing = [{"type": "file", "path": f"{i}.gguf", "size": 1} for i in range(100)]
    with pytest.raises(ValueError, match=r"59.gguf  1 bytes\n  and 40 more$"):
        pull("hf:org/repo")
    monkeypatch.setattr(remote, "MOST_LISTING", 1000)
    with pytest.raises(HubError, match="sends more than 1 KB"):
        pull("hf:org/repo")


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:org",
        "hf:org/",
        "hf:../repo/m.gguf",
        "hf:org/../m.gguf",
        "hf:org/re--po/m.gguf",
        "hf:org/repo/../../m.gguf",
        "hf:org/repo/a//m.gguf",
        "hf:org/repo/./m.gguf",
        "hf:org/repo/a\\m.gguf",
        "hf:org/repo/a\x1b.gguf",
        "hf:org/repo/" + "a" * 256,
        "hf:org/repo/m.gguf@",
        "hf:org/repo/m.gguf@../x",
        "hf:org/repo/m.gguf@a b",
        "g1:9000b",
        "nosuch:",
    ],
)
def test_names_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|known names are g1:0.1b, "):
        hub.parse(text)


def test_names() -> None:
    for path in ("model.gguf", "/a:b/m.gguf", "a/b:c", "C:\\m.gguf", ""):
        assert hub.parse(path) is None
    name = hub.parse("hf:BlinkDL/rwkv-4-raven/RWKV-4-Raven-7B-Eng98%-Other2%.pth@refs/pr/1")
    assert name is not None
    assert (name.repo, name.revision) == ("BlinkDL/rwkv-4-raven", "refs/pr/1")
    assert name.file == "RWKV-4-Raven-7B-Eng98%-Other2%.pth"
    assert not name.pinned
    for alias, (repo, file, revision, digest) in hub.ALIASES.items():
        found = hub.parse(alias.upper())
        assert found is not None
        assert (found.repo, found.file, found.sha256) == (repo, file, digest)
        assert found.revision == (revision or "main")
        assert names.is_file_name(file)
        assert not digest or remote.SHA256.fullmatch(digest)
        assert not revision or names.COMMIT.fullmatch(revision)


def test_an_alias_has_the_bytes_of_its_hash(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.ALIASES, "g1:test", ("org/repo", "sub/m.gguf", "", sha256(DATA)))
    path = pull("g1:test")
    fake.seen.clear()
    assert pull("G1:test") == path
    assert fake.seen == []
    # A branch that has gone on does not change what the alias means.
    (path.parents[3] / "refs" / "main").write_text("f" * 40)
    assert pull("g1:test") == path
    monkeypatch.setitem(names.ALIASES, "g1:test", ("org/repo", "sub/m.gguf", "", "0" * 64))
    with pytest.raises(
        HubError, match=f"has sub/m.gguf with the SHA-256 {sha256(DATA)}, expected 0"
    ):
        pull("g1:test")


def test_the_disk_is_asked_first(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match="needs 400 KB more, 300 KB are free"):
        pull(NAME)
    assert fake.gets() == []
    part(tmp_path).write_bytes(DATA[:200_000])  # and then 200 KB are enough
    assert pull(NAME).read_bytes() == DATA


def test_two_pulls_of_one_file(fake: FakeHub, tmp_path: Path) -> None:
    """The lock is where the hub's own programs have it."""
    folder = tmp_path / "home/hub/.locks/models--org--repo"
    folder.mkdir(parents=True)
    with (folder / f"{sha256(DATA)}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HubError, match="another program is fetching it"):
            pull(NAME)
        assert fake.gets() == []
    assert pull(NAME).read_bytes() == DATA


def test_a_proxy_is_asked(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", fake.url)
    assert pull(NAME).read_bytes() == DATA
    assert fake.seen[0].path == "http://hub.invalid/org/repo/resolve/main/sub/m.gguf"


def test_modelscope(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = pull("ms:org/repo/sub/m.gguf")
    assert path == (
        tmp_path / "cache/rwkv-edge/modelscope/models--org--repo/snapshots/master/sub/m.gguf"
    )
    assert path.read_bytes() == DATA
    assert fake.gets()[0].path == "/models/org/repo/resolve/master/sub/m.gguf"
    assert all("authorization" not in entry.headers for entry in fake.seen)
    name = hub.parse("ms:org/repo/sub/m.gguf")
    assert name is not None
    assert hub.cached(name) == path
    with pytest.raises(HubError, match=r"no such file; it has\n  ms:org/repo/sub/m.gguf  400 KB"):
        pull("ms:org/repo/x.gguf")
    fake.listing = [{"Path": "y.gguf", "Size": 4, "Type": "blob"}]
    with pytest.raises(HubError, match="found nothing as its SHA-256"):
        pull("ms:org/repo/y.gguf")


def test_what_to_do_next() -> None:
    assert advice("g1:x", Path("m.gguf")) == "next: rwkv-edge chat g1:x"
    assert "rwkv-edge convert g1:x m.gguf --type q8_0" in advice("g1:x", Path("m.pth"))


def test_speed_and_time_left() -> None:
    speed = Speed()
    assert speed(0, 10**9, 100.0) == "0 bytes of 1 GB"
    assert speed(10**8, 10**9, 101.0) == "100 MB of 1 GB, 100 MB/s, 9 s left"
    for second in range(2, 40):
        text = speed(10**8 + second * 10**6, 10**9, 100.0 + second)
    assert text == "139 MB of 1 GB, 1 MB/s, 14 min left"  # of the last seconds
    assert len(text) <= 40  # what a line of progress shows


def program(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, timeout=SECONDS, check=False)


def test_commands_take_names(fake: FakeHub, tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d128")
    fake.files["sub/m.gguf"] = path.read_bytes()
    own = program("info", NAME)
    assert own.returncode == 0, own.stderr
    assert b"RWKV-7" in own.stdout
    fake.seen.clear()
    options = ["-p", "a", "-n", "3", "--seed", "1"]
    named, plain = program("generate", NAME, *options), program("generate", str(path), *options)
    assert (named.returncode, named.stdout) == (0, plain.stdout)
    made = tmp_path / "q.gguf"
    assert program("quantize", NAME, str(made), "--type", "q8_0").returncode == 0
    assert program("convert", NAME, str(made), "--type", "q4_0").returncode == 0
    assert program("bench", NAME, "-p", "0", "-n", "1", "-r", "1").returncode == 0
    (tmp_path / "text").write_text("some words " * 20)
    measured = program(
        "perplexity", NAME, str(tmp_path / "text"), "--against", NAME, "--window", "64"
    )
    assert measured.returncode == 0, measured.stderr
    assert fake.seen == []  # all of them found it in the cache
    pulled = program("pull", NAME)
    assert pulled.returncode == 0
    assert Path(pulled.stdout.decode().strip()).read_bytes() == path.read_bytes()
    assert pulled.stderr.decode() == f"next: rwkv-edge chat {NAME}\n"
    refused = program("chat", "g1:9b")
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"Error: g1:9b: no such file or model; known names are g1:")
    listed = program("pull", "hf:org/repo")
    assert (listed.returncode, listed.stdout) == (1, b"")
    assert b"\n  hf:org/repo/sub/m.gguf  " in listed.stderr
    assert b"g1:0.4b " in program("pull").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_program_goes_on_after_a_signal(
    fake: FakeHub, tmp_path: Path, number: signal.Signals
) -> None:
    fake.gate = threading.Event()
    with subprocess.Popen([*PROGRAM, "pull", NAME], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + SECONDS
        while not part(tmp_path).exists() or part(tmp_path).stat().st_size < len(DATA) // 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert errors == b""
    fake.gate.set()
    done = program("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.decode().strip()).read_bytes() == DATA
    assert fake.ranges_asked() == [None, f"bytes={len(DATA) // 2}-"]
