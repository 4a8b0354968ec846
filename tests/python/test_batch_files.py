# SPDX-License-Identifier: Apache-2.0
"""Files of requests: which lines are answered, what is written, and what is left after a kill."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from refusal import refuses
from rwkv_edge import FormatError, batch


class Echo:
    """Answers a line with what it asked, later lines first; refuses the URL /no."""

    def __init__(self, most: int | None = None) -> None:
        self.asked: list[Any] = []
        self.at_work = self.most_at_work = 0
        self.most = most  # answers before the program ends

    async def __call__(self, url: str, body: Any) -> tuple[int, dict[str, Any]]:
        if self.most is not None and len(self.asked) >= self.most:
            raise KeyboardInterrupt
        self.asked.append(body)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        for _ in range(30 - len(self.asked) % 30):
            await asyncio.sleep(0)
        self.at_work -= 1
        return (400 if url == "/no" else 200), {"asked": body}


def request(custom_id: Any, body: Any = 0, **more: Any) -> str:
    line = {"custom_id": custom_id, "method": "POST", "url": "/yes", "body": body}
    return json.dumps({**line, **more})


def run(folder: Path, answer: Echo, **options: Any) -> batch.Counts:
    return asyncio.run(batch.run(folder / "in", folder / "out", answer, **options))


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out").read_text("utf-8").splitlines()]


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    found = {line["custom_id"]: line for line in written(folder)}
    assert len(found) == len(written(folder))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").write_text("\n".join(request(f"id {i}", i) for i in range(40)))
    return tmp_path


def test_each_line_is_answered_once(folder: Path) -> None:
    echo = Echo()
    seen: list[tuple[int, int]] = []
    counts = run(folder, echo, together=7, progress=lambda *numbers: seen.append(numbers))
    assert (counts.answered, counts.refused, counts.skipped) == (40, 0, 0)
    assert echo.most_at_work == 7
    found = by_id(folder)
    assert len({line["id"] for line in found.values()}) == 40
    for i in range(40):
        line = found[f"id {i}"]
        assert line["response"]["status_code"] == 200
        assert line["response"]["body"] == {"asked": i}
        assert line["error"] is None
    size = (folder / "in").stat().st_size
    assert seen[-1] == (size, size)


@pytest.mark.parametrize("tail", ["", '{"id": "batch_req_1", "custom_id": "id 39", "resp', '{"i'])
def test_a_batch_goes_on_where_it_ended(folder: Path, tail: str) -> None:
    first, second = Echo(20), Echo()
    with pytest.raises(KeyboardInterrupt):
        run(folder, first, together=4)
    before = (folder / "out").read_text()
    assert 20 - 4 <= len(written(folder)) <= 20  # but for those in flight
    (folder / "out").write_text(before + tail)  # as a full disk leaves it
    counts = run(folder, second)
    assert (folder / "out").read_text().startswith(before)
    assert counts.skipped == before.count("\n")
    assert counts.answered + counts.skipped == 40
    assert sorted(line["response"]["body"]["asked"] for line in by_id(folder).values()) == list(
        range(40)
    )
    assert run(folder, Echo(0)).skipped == 40  # nothing is left to ask


def test_a_first_line_that_was_cut_off(folder: Path) -> None:
    (folder / "out").write_text('{"id": "batch_req_0123", "cus')
    assert run(folder, Echo()).answered == 40
    assert len(by_id(folder)) == 40


def test_parts(folder: Path) -> None:
    asked = []
    for i in (1, 2, 3):
        echo = Echo()
        (folder / "out").unlink(missing_ok=True)
        run(folder, echo, part=batch.shard(f"{i}/3"))
        asked.append(sorted(echo.asked))
    assert asked == [list(range(i, 40, 3)) for i in range(3)]
    for text in ("0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/3/5", ""):
        with pytest.raises(ValueError, match="no part of a file"):
            batch.shard(text)


BAD = {
    "{": "line 1: no JSON",
    "[" * 100_000: "line 1: no JSON",
    "\xff": "line 1: no JSON",
    "[]": "line 1: found [], expected an object",
    '{"url": "/yes"}': "line 1: custom_id: found None",
    request(""): "line 1: custom_id: found ''",
    request(7): "line 1: custom_id: found 7",
    request("x" * 513): "line 1: custom_id: found 'xxx",
    request("a", method="GET"): "line 1: method: found 'GET'",
    request("a", url=["x"]): "line 1: url: found ['x']",
    request("a" * 10, "b" * (1 << 24)): f"line 1: more than {1 << 24} bytes",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_answered_and_the_next_one_follows(tmp_path: Path, line: str) -> None:
    (tmp_path / "in").write_bytes(f"{line}\n\n{request('next')}\n".encode("latin-1"))
    counts = run(tmp_path, Echo())
    assert (counts.answered, counts.refused) == (1, 1)
    found = {line["custom_id"]: line for line in written(tmp_path)}
    assert found["next"]["response"]["status_code"] == 200
    (bad,) = (line for name, line in found.items() if name != "next")
    assert bad["response"]["status_code"] == 400
    error = bad["response"]["body"]["error"]
    assert error["message"].startswith(BAD[line])
    assert len(error["message"]) < 300
    assert bad["custom_id"] == ("a" if '"custom_id": "a"' in line else None)
    assert bad["line"] == 1
    assert run(tmp_path, Echo(0)).skipped == 2


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("\n".join(request("same", i) for i in range(3)))
    counts = run(tmp_path, Echo())
    assert (counts.answered, counts.refused) == (1, 2)
    errors = [line for line in written(tmp_path) if "line" in line]
    assert sorted(line["line"] for line in errors) == [2, 3]
    assert all("is that of line 1" in str(line["response"]["body"]) for line in errors)
    kept = [line for line in written(tmp_path) if line.get("line") != 3]
    (tmp_path / "out").write_text("".join(json.dumps(line) + "\n" for line in kept))
    counts = run(tmp_path, Echo(0))
    assert (counts.refused, counts.skipped) == (1, 2)


def test_refused_lines_are_not_asked_again(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(request("a", url="/no"))
    assert run(tmp_path, Echo()).refused == 1
    assert run(tmp_path, Echo(0)).skipped == 1


def test_lines_that_failed_are_asked_again(tmp_path: Path) -> None:
    async def fail(_url: str, body: Any) -> tuple[int, dict[str, Any]]:
        return body, {}

    (tmp_path / "in").write_text("\n".join(request(f"id {i}", i) for i in (429, 500, 503, 499)))
    counts = asyncio.run(batch.run(tmp_path / "in", tmp_path / "out", fail))
    assert (counts.answered, counts.refused, counts.failed) == (0, 1, 3)
    assert set(by_id(tmp_path)) == {"id 499"}
    assert run(tmp_path, Echo()).answered == 3


def test_any_text_is_an_id(tmp_path: Path) -> None:
    names = ["语言", "\ud83d", "a\nb", "\x00", "😀"]
    (tmp_path / "in").write_text("\n".join(request(name, name) for name in names))
    run(tmp_path, Echo())
    assert set(by_id(tmp_path)) == set(names)
    assert run(tmp_path, Echo(0)).skipped == len(names)
    (tmp_path / "out").read_bytes().decode("utf-8")


@pytest.mark.parametrize("text", ["text\n", "text", '{"a": 1}\n', '{"id": "x", "custom_id": []}\n'])
def test_other_files_stay_as_they_are(folder: Path, text: str) -> None:
    (folder / "out").write_text(text)
    with refuses(FormatError, folder / "out", "line 1 is no answer"):
        run(folder, Echo(0))
    assert (folder / "out").read_text() == text
    good = '{"id": "batch_req_1", "custom_id": "id 1", "response": {}}\n'
    (folder / "out").write_text(good + text)
    if text.endswith("\n"):
        with refuses(FormatError, folder / "out", "line 2 is no answer"):
            run(folder, Echo(0))
        assert (folder / "out").read_text() == good + text


def test_the_input_is_not_the_output(folder: Path) -> None:
    before = (folder / "in").read_bytes()
    with refuses(FormatError, folder / "in", "line 1 is no answer"):
        asyncio.run(batch.run(folder / "in", folder / "in", Echo(0)))
    assert (folder / "in").read_bytes() == before


def test_only_regular_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with refuses(FormatError, folder / "pipe", "a pipe"):
        asyncio.run(batch.run(folder / "pipe", folder / "out", Echo(0)))
    with refuses(FormatError, folder / "pipe", "a pipe"):
        asyncio.run(batch.run(folder / "in", folder / "pipe", Echo(0)))


def test_one_program_writes(folder: Path) -> None:
    with (folder / "out").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with refuses(OSError, folder / "out", "another program is writing"):
            run(folder, Echo(0))
