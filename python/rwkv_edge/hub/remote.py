# SPDX-License-Identifier: Apache-2.0
"""What the hubs say over HTTP. Everything received is hostile until it is checked here."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from time import sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from ..files.form import amount, printable
from .cache import hub_home
from .names import COMMIT, ENDINGS, HubError, Name, is_file_name

SECONDS = 30.0  # without a byte
TRIES = 6  # in a row that brought nothing
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before another try
MOST_LISTING = 16 << 20  # bytes
MOST_SIZE = 1 << 44
MOST_REDIRECTS = 5
SHOWN_FILES = 60
PASSING = (408, 425, 429, 500, 502, 503, 504)  # worth another try
NETWORK = (OSError, http.client.HTTPException)
REDIRECTED = ("User-agent", "Accept-encoding", "Range")  # headers that any host may see
SHA256, GIT = re.compile(r"[0-9a-f]{64}"), COMMIT


@dataclass(frozen=True)
class Remote:
    """A file as its hub describes it. `digest` is a SHA-256, or git's SHA-1 of a small file."""

    url: str
    size: int
    digest: str
    commit: str  # of the snapshot that it belongs to


def describe(name: Name) -> Remote:
    """Ask the hub about a file; raises HubError."""
    return _of_hub(name) if name.source == "hf" else _of_modelscope(name)


def candidates(name: Name) -> str:
    """The files of a repository that may be models, as lines."""
    found = []
    for file, size in _listing(name):
        if file.lower().endswith(ENDINGS) and is_file_name(file):
            end = name.text.rpartition("@")[1] and f"@{name.revision}"
            found.append(f"  {name.source}:{name.repo}/{printable(file)}{end}  {amount(size)}")
    more = len(found) - SHOWN_FILES
    return "\n".join(
        [*found[:SHOWN_FILES], *([f"  and {more} more"] if more > 0 else [])]
        or ["  no file that may be a model"]
    )


def body(name: Name, remote: Remote, start: int) -> Generator[bytes | None, None, None]:
    """The bytes of a file from `start` on as they come. None first says that the server begins
    anew, at byte 0. Ends early where the connection does; raises HubError, or what NETWORK has."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    with contextlib.closing(_open(name, "GET", remote.url, headers)) as response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise HubError(f"{name.text}: {_host(remote.url)} sends it compressed")
        if start and response.status == 206:
            found = response.headers.get("Content-Range", "")
            if not re.fullmatch(rf"bytes {start}-\d+/({remote.size}|\*)", found):
                raise HubError(
                    f"{name.text}: asked for bytes from {start} of {remote.size}, "
                    f"got {_short(found) or 'some'}"
                )
        elif response.status != 200:
            raise HubError(f"{name.text}: {_host(remote.url)} answers {response.status}")
        else:
            yield None
        while data := response.read1(1 << 18):
            yield data


def pause(tries: int, asked: float | None) -> None:
    """Wait before another try, after so many that brought nothing: as long as the server asked, or
    twice as long each time."""
    sleep(min(FIRST_PAUSE * 2 ** max(tries - 1, 0) if asked is None else asked, LONGEST_PAUSE))


def passing(error: BaseException) -> bool:
    """Whether another try may have more luck."""
    return not isinstance(error, HubError) or isinstance(error, Busy)


def asked_pause(error: BaseException) -> float | None:
    return error.seconds if isinstance(error, Busy) else None


class Busy(HubError):
    """The server asks to come back later, after so many seconds where it says."""

    seconds: float | None = None


def _endpoint(source: str) -> str:
    if source == "hf":
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    found = (os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn").rstrip("/")
    return found if "://" in found else f"https://{found}"


def _token() -> str | None:
    """The user's, as the hub's own programs find it."""
    found = os.environ.get("HF_TOKEN", "")
    if not found:
        path = os.environ.get("HF_TOKEN_PATH")
        file = Path(path).expanduser() if path else hub_home() / "token"
        with contextlib.suppress(OSError), file.open("rb") as opened:
            found = opened.read(4096).decode("ascii", "replace")
    found = found.strip()
    if not re.fullmatch(r"[!-~]*", found):  # the text itself stays out of the message
        raise HubError("HF_TOKEN: found other characters than a token has")
    return found or None


def _of_hub(name: Name) -> Remote:
    base = f"{_endpoint('hf')}/{name.repo}/resolve/"
    url = f"{base}{quote(name.revision, safe='')}/{quote(name.file)}"
    headers = _again(name, "HEAD", url, None)
    assert isinstance(headers, Message)
    commit = headers.get("X-Repo-Commit", "")
    if not COMMIT.fullmatch(commit):
        raise HubError(
            f"{name.text}: {_host(url)} does not say which commit it is of; is it a hub?"
        )
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    digest = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    return _checked(
        name,
        f"{base}{commit}/{quote(name.file)}",
        size,
        digest.removeprefix("W/").strip('"'),
        commit,
    )


def _of_modelscope(name: Name) -> Remote:
    base = f"{_endpoint('ms')}/models/{name.repo}/resolve/{quote(name.revision, safe='')}"
    for entry in _modelscope_files(name):
        if entry.get("Path") == name.file and entry.get("Type") != "tree":
            size, digest = str(entry.get("Size")), str(entry.get("Sha256") or "").lower()
            return _checked(name, f"{base}/{quote(name.file)}", size, digest, name.revision)
    raise HubError(f"{name.text}: the repository has no such file; it has\n{candidates(name)}")


def _checked(name: Name, url: str, size: str, digest: str, commit: str) -> Remote:
    if not re.fullmatch(r"[0-9]{1,15}", size) or not 0 < int(size) <= MOST_SIZE:
        raise HubError(f"{name.text}: found the size {_short(size) or 'nothing'}, expected bytes")
    if not SHA256.fullmatch(digest) and not (name.source == "hf" and GIT.fullmatch(digest)):
        raise HubError(
            f"{name.text}: found {_short(digest) or 'nothing'} as its SHA-256, so its bytes could "
            "not be checked"
        )
    if name.sha256 and digest != name.sha256:
        raise HubError(
            f"{name.text}: {_host(url)} has {name.file} with the SHA-256 {digest}, "
            f"expected {name.sha256}"
        )
    return Remote(url, int(size), digest, commit)


def _listing(name: Name) -> list[tuple[str, int]]:
    """Files of a repository and their sizes."""
    if name.source == "ms":
        entries, path, size = _modelscope_files(name), "Path", "Size"
        entries = [entry for entry in entries if entry.get("Type") != "tree"]
    else:
        url = f"{_endpoint('hf')}/api/models/{name.repo}/tree/{quote(name.revision, safe='')}"
        entries, path, size = _entries(name, _json(name, f"{url}?recursive=true")), "path", "size"
        entries = [entry for entry in entries if entry.get("type") == "file"]
    return [
        (entry[path], entry[size])
        for entry in entries
        if isinstance(entry.get(path), str) and type(entry.get(size)) is int and entry[size] >= 0
    ]


def _modelscope_files(name: Name) -> list[dict[str, Any]]:
    url = f"{_endpoint('ms')}/api/v1/models/{name.repo}/repo/files"
    found = _json(name, f"{url}?Revision={quote(name.revision, safe='')}&Recursive=True")
    data = found.get("Data") if isinstance(found, dict) else None
    return _entries(name, data.get("Files") if isinstance(data, dict) else None)


def _entries(name: Name, found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, list):
        raise HubError(f"{name.text}: found no list of its repository's files")
    return [entry for entry in found if isinstance(entry, dict)]


def _json(name: Name, url: str) -> Any:
    data = _again(name, "GET", url, MOST_LISTING)
    assert isinstance(data, bytes)
    if len(data) > MOST_LISTING:
        raise HubError(f"{name.text}: {_host(url)} sends more than {amount(MOST_LISTING)}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise HubError(f"{name.text}: {_host(url)} sends no JSON") from None


def _again(name: Name, method: str, url: str, most: int | None) -> Message | bytes:
    """The headers of an answer, or its first `most` + 1 bytes; tried several times."""
    for tries in range(1, TRIES + 1):
        try:
            with contextlib.closing(_open(name, method, url, {})) as response:
                return response.headers if most is None else bytes(response.read(most + 1))
        except NETWORK as error:
            if not passing(error):
                raise
            # Nobody answers: an address or a network that is not there, rather than a busy one.
            unreachable = isinstance(error, URLError) and not isinstance(error.reason, TimeoutError)
            if unreachable or tries == TRIES:
                raise failed(name, url, error) from error
            pause(tries, asked_pause(error))
    raise AssertionError


def failed(name: Name, url: str, error: BaseException) -> HubError:
    """What to say when there were no more tries."""
    if isinstance(error, HubError):
        return error
    reason = error.reason if isinstance(error, URLError) else error
    text = printable(str(reason))[:200] or type(reason).__name__
    return HubError(f"{name.text}: {_host(url)} cannot be reached: {text}")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without taking the token to another host. A question about a file is not
    taken there either: what was asked for is in the headers of the redirect."""

    max_redirections = MOST_REDIRECTS
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # missing in Python 3.10

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: Any,  # noqa: ARG002
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            return None
        elsewhere = (new.scheme, new.netloc) != (old.scheme, old.netloc)
        if req.get_method() == "HEAD" and elsewhere:
            return None
        kept = REDIRECTED if elsewhere else (*REDIRECTED, "Authorization")
        own = {name: value for name, value in req.headers.items() if name in kept}
        return urllib.request.Request(newurl, headers=own, method=req.get_method())


def _open(name: Name, method: str, url: str, headers: dict[str, str]) -> Any:
    """The answer to a request; an HTTPError only where a HEAD was sent elsewhere."""
    own = {"User-Agent": "rwkv-edge", "Accept-Encoding": "identity", **headers}
    if name.source == "hf" and (token := _token()) is not None:
        own["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(url, headers=own, method=method)
        return urllib.request.build_opener(Redirects).open(request, timeout=SECONDS)
    except HTTPError as error:
        with contextlib.closing(error):
            if method == "HEAD" and 300 <= error.code < 400:
                return error
            raise _refusal(name, url, error) from None
    except (ValueError, http.client.InvalidURL) as error:  # an endpoint that is no URL
        raise HubError(f"{name.text}: {_short(url)}: {_short(str(error))}") from None


def _refusal(name: Name, url: str, error: HTTPError) -> HubError:
    """What an answer that is no success means."""
    host, code = _host(url), error.code
    why = error.headers.get("X-Error-Code", "")
    if code in PASSING:
        asked = error.headers.get("Retry-After", "")
        busy = Busy(f"{name.text}: {host} answers {code}, also after {TRIES} tries")
        busy.seconds = float(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else None
        return busy
    if code in (401, 403):
        advice = "HF_TOKEN, and the conditions on its page, give access" * (name.source == "hf")
        return HubError(
            f"{name.text}: {host} answers {code}: {name.repo} does not exist, is private, "
            f"or has conditions. {advice}".rstrip(". ")
        )
    if code == 404 and why == "EntryNotFound" and name.file:
        return HubError(f"{name.text}: {name.repo} has no such file; it has\n{candidates(name)}")
    if code == 404:
        what = f"revision {name.revision!r}" if why == "RevisionNotFound" else "such repository"
        return HubError(f"{name.text}: {host} answers 404: no {what}")
    if 300 <= code < 400:
        return HubError(
            f"{name.text}: {host} leads in a circle, or to where it is not safe to follow"
        )
    return HubError(f"{name.text}: {host} answers {code}")


def _host(url: str) -> str:
    """Of a URL that may hold a signature, what may be shown."""
    return printable(urlsplit(url).netloc.rpartition("@")[2])[:80]


def _short(text: str) -> str:
    return printable(text)[:100]
