# SPDX-License-Identifier: Apache-2.0
"""The page of the server: its files over HTTP; and in a browser, where there is a Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rwkv_edge import Model
from rwkv_edge.server import openai, static
from rwkv_edge.server.service import Options, Service
from served import PATIENCE, serving

FILES = sorted(path.name for path in static.FOLDER.iterdir())
SOURCES = {name: (static.FOLDER / name).read_text("utf-8") for name in FILES}


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Model(threads=1))


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with serving(service) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


# ---- the files ----------------------------------------------------------------------------------


def where(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", FILES)
def test_a_file(client: httpx.Client, name: str) -> None:
    found = client.get(where(name))
    assert found.status_code == 200
    assert found.content == (static.FOLDER / name).read_bytes()
    kinds = {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
    assert found.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["cache-control"] == "no-cache"
    # It is asked for again each time, and sent again only where it has changed.
    mark = found.headers["etag"]
    for sent, status in ((mark, 304), (f'"x", W/{mark}', 304), ('"x"', 200)):
        again = client.get(where(name), headers={"if-none-match": sent})
        assert again.status_code == status
        assert bool(again.content) == (status == 200)


def test_what_the_page_may_do(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert {"script-src", "style-src", "connect-src", "frame-ancestors", "base-uri"} < set(rules)
    assert set(rules.values()) == {"'self'", "'none'"}


def test_nothing_of_another_origin() -> None:
    for name, text in SOURCES.items():
        own = text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
        assert not re.search(r"""["'(]\s*(?:https?:)?//\w""", own), name


def test_all_that_is_named_is_served() -> None:
    html = SOURCES["index.html"]
    named = re.findall(r'(?:src|href)="(?!#)([^"]+)"', html)
    scripts = "".join(text for name, text in SOURCES.items() if name.endswith(".js"))
    named += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', scripts)]
    assert {name.removeprefix("page/") for name in named} | {"index.html"} == set(FILES)


def test_no_code_in_the_text_and_no_text_as_html() -> None:
    html = SOURCES["index.html"]
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", html)
    for name, text in SOURCES.items():
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", text
            )


def test_who_gets_the_files() -> None:
    """No key is needed to be asked for one, and other sites get nothing but a link to follow."""
    link = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    with (
        serving(Service(Model(threads=1)), keys=["a secret key"]) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert client.get("/").status_code == 200
        assert client.get("/page/app.js").status_code == 200
        assert client.get("/props").status_code == 401
        for headers, status in (
            ({"host": "evil.example"}, 403),
            ({"origin": "https://evil.example"}, 403),
            ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
            ({**link, "sec-fetch-dest": "iframe"}, 403),
            ({**link, "origin": "https://evil.example"}, 403),
            ({**link, "host": "evil.example"}, 403),
            (link, 200),
        ):
            assert client.get("/", headers=headers).status_code == status, headers
        key = {"authorization": "Bearer a secret key"}
        assert client.get("/v1/states", headers={**link, **key}).status_code == 403
        assert client.post("/", json={}, headers=link).status_code == 403
        assert client.post("/", json={}).status_code == 405


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/../app.py", "/page/%2e%2e/app.py", "/page/x.js"]
)
def test_no_other_file(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


# ---- in a browser -------------------------------------------------------------------------------

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
STORY, NAME, ASKED = "Tell me a short story.", "My name is Anna.", "What is my name?"


class Gate:
    """Holds back the chunks of answers."""

    def __init__(self) -> None:
        self.most: int | None = None
        """Chunks that pass before it is opened."""
        self.opened = threading.Event()
        self.passed = 0

    async def through(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            while self.most is not None and self.passed >= self.most and not self.opened.is_set():
                await asyncio.sleep(0.005)
            self.passed += 1
            yield chunk


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, chunks = Gate(), openai.chat_chunks
    monkeypatch.setattr(openai, "chat_chunks", lambda *given: gate.through(chunks(*given)))
    yield gate
    gate.opened.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    library = pytest.importorskip("playwright.sync_api", reason="needs the extra test-web")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium: in PATH, or named by the environment variable CHROMIUM")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Shown:
    """The page in a window, and what went wrong there."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        """Of the chats that were asked for."""
        self.urls: list[str] = []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._asked)

    def _said(self, said: Any) -> None:
        if said.type == "error":
            self.problems.append(said.text)

    def _asked(self, request: Any) -> None:
        self.urls.append(request.url)
        if not request.url.startswith((f"{self.url}/", f"blob:{self.url}/")):
            self.problems.append(f"asked for {request.url}")
        if request.url.endswith("/chat/completions"):
            self.bodies.append(json.loads(request.post_data))

    def until(self, check: Callable[[], object]) -> None:
        """Wait for something, and let events of the browser come meanwhile."""
        until = time.monotonic() + PATIENCE
        while not check():
            assert time.monotonic() < until, self.page.locator("#app").inner_text()
            self.page.wait_for_timeout(5)

    def ready(self) -> None:
        self.page.goto(self.url)
        self.until(self.text.is_enabled)

    @property
    def text(self) -> Any:
        return self.page.get_by_role("textbox", name="Message")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def answer(self, number: int) -> Any:
        """The region of the answer in a turn."""
        turn = self.page.get_by_role("article", name=f"Turn {number}", exact=True)
        return turn.get_by_role("region", name="Answer", exact=True)

    def row(self, text: str) -> Any:
        return self.page.get_by_role("treeitem").filter(has_text=text)

    def say(self, text: str, number: int | None = None) -> None:
        """Ask, and wait until all is answered; the answer of turn `number` is there then."""
        before = len(self.bodies)
        self.text.fill(text)
        self.text.press("Enter")
        self.until(lambda: len(self.bodies) > before and self.button("Send").is_visible())
        if number is not None:
            self.answer(number).get_by_role("button", name="Copy the answer").wait_for()

    def wide(self) -> bool:
        """Whether something stands out to the right."""
        found: bool = self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        return found


@pytest.fixture
def window(browser: Any, url: str) -> Iterator[Callable[..., Shown]]:
    """Opens the page in a fresh profile. Nothing may have gone wrong there at the end, unless the
    test has looked at it and emptied the list."""
    opened = []

    def open_page(at: str = url, **options: Any) -> Shown:
        context = browser.new_context(**options)
        shown = Shown(context.new_page(), at)
        opened.append((context, shown))
        shown.ready()
        return shown

    yield open_page
    for context, shown in opened:
        context.close()
        assert shown.problems == []


def test_an_answer_comes_word_by_word(window: Callable[..., Shown], gate: Gate) -> None:
    shown = window()
    gate.most = 6
    shown.text.fill(STORY)
    shown.text.press("Enter")
    answer = shown.answer(1)
    shown.until(lambda: "Once upon a time" in answer.inner_text())
    assert "The end." not in answer.inner_text()
    assert answer.get_attribute("aria-busy") == "true"
    assert shown.button("Stop").is_visible()
    assert not shown.button("Send").is_visible()
    gate.opened.set()
    answer.get_by_role("button", name="Copy the answer").wait_for()
    assert answer.get_attribute("aria-busy") == "false"
    whole = answer.locator(".text").inner_text()
    assert len(whole) > 100
    # A screen reader hears it once, when it is whole.
    assert shown.page.get_by_role("log", name="Answers").text_content() == whole
    assert shown.button("Send").is_visible()
    [body] = shown.bodies
    assert body["stream"]
    assert body["store"]
    assert body["messages"] == [{"role": "user", "content": STORY}]


@pytest.mark.parametrize("key", [True, False], ids=["Escape", "button"])
def test_stop(window: Callable[..., Shown], gate: Gate, service: Service, key: bool) -> None:
    """What came stays, and one can go on from there, or let it go on."""
    shown = window()
    gate.most = 8
    shown.text.fill(STORY)
    shown.text.press("Enter")
    answer = shown.answer(1)
    shown.until(lambda: "Once upon a" in answer.inner_text())
    if key:
        shown.page.keyboard.press("Escape")
    else:
        shown.button("Stop").click()
    answer.get_by_text("Stopped.").wait_for()
    shown.until(lambda: service.scheduler.running == 0)
    part = answer.locator(".text").inner_text()
    assert "The end." not in part
    gate.opened.set()
    answer.get_by_role("button", name="Continue the answer").click()
    shown.until(lambda: len(shown.bodies) == 2 and shown.button("Send").is_visible())
    assert shown.bodies[1]["messages"][1] == {"role": "assistant", "content": part, "prefix": True}
    shown.until(lambda: len(answer.locator(".text").inner_text()) > len(part))
    assert answer.locator(".text").inner_text().startswith(part)
    shown.say(ASKED, 2)
    assert shown.bodies[2]["state"] is not None
    assert len(shown.bodies[2]["messages"]) == 1


def test_go_on_from_an_earlier_node(window: Callable[..., Shown]) -> None:
    shown = window()
    shown.say(NAME, 1)
    shown.say("What is the capital of France?", 2)
    shown.say(ASKED, 3)
    assert "Anna" in shown.answer(3).inner_text()
    shown.row(NAME).click()
    assert shown.page.get_by_role("article").count() == 1
    assert shown.page.get_by_text("Going on from an earlier point").is_visible()
    shown.say("My name is Tom.", 2)
    shown.say(ASKED, 3)
    assert "Tom" in shown.answer(3).inner_text()
    # It began where Anna's node ended, and read nothing again.
    assert shown.bodies[3]["state"] == shown.bodies[1]["state"]
    assert all(len(body["messages"]) == 1 for body in shown.bodies)
    # Anna's branch is as it was; arrows go there too.
    tree = shown.page.get_by_role("tree", name="Tree")
    assert tree.get_by_role("treeitem").count() == 6
    shown.answer(2).get_by_role("button", name="The branch before").click()
    assert "Anna" in shown.answer(3).inner_text()
    shown.say(ASKED, 4)
    assert "Anna" in shown.answer(4).inner_text()
    # From the beginning, nobody knows.
    shown.row("Beginning").click()
    shown.say(ASKED, 1)
    assert "Anna" not in shown.answer(1).inner_text()
    assert shown.bodies[-1]["state"] is None


def test_answers_side_by_side(window: Callable[..., Shown]) -> None:
    shown = window()
    shown.page.get_by_label("Number of answers").select_option("2 answers")
    shown.say(STORY)
    one, other = (shown.page.get_by_role("region", name=f"Answer {i} of 2") for i in (1, 2))
    other.get_by_role("button", name="Go on from here").wait_for()
    assert one.get_attribute("aria-current") == "true"
    left, right = one.bounding_box(), other.bounding_box()
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    text = other.locator(".text").inner_text()
    assert text != one.locator(".text").inner_text()
    other.get_by_role("button", name="Go on from here").click()
    assert other.get_attribute("aria-current") == "true"
    shown.page.get_by_label("Number of answers").select_option("1 answer")
    shown.say(NAME, 2)
    assert shown.answer(1).locator(".text").inner_text() == text
    # Another answer, beside the one of the second turn.
    shown.answer(2).get_by_role("button", name="Answer again, beside this").click()
    shown.until(lambda: len(shown.bodies) == 3 and shown.button("Send").is_visible())
    assert shown.bodies[2]["state"] == shown.bodies[1]["state"]
    shown.answer(2).get_by_role("button", name="Show the answers side by side").click()
    assert shown.page.get_by_role("region", name="Answer 2 of 2").is_visible()


DROP = """([data, name]) => {
  const octets = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([octets], name));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
    document.body.dispatchEvent(new DragEvent(kind, options));
  }
}"""


def drop(shown: Shown, data: bytes, name: str) -> None:
    import base64

    shown.page.evaluate(DROP, [base64.b64encode(data).decode(), name])


def test_a_mind_as_a_file(window: Callable[..., Shown], tmp_path: Path) -> None:
    shown = window()
    shown.say(NAME, 1)
    with shown.page.expect_download() as download:
        shown.button("Save this mind").click()
    assert download.value.suggested_filename == "my-name-is-anna.state"
    path = tmp_path / "anna.state"
    download.value.save_as(path)
    assert path.read_bytes().startswith(b"GGUF")
    other = window()  # another browser, which knows nothing
    drop(other, path.read_bytes(), path.name)
    other.page.get_by_role("heading", name="Go on where it stopped.").wait_for()
    other.say(ASKED, 1)
    assert "Anna" in other.answer(1).inner_text()
    assert other.row("From a file").filter(has_text="anna").is_visible()
    # by the button, too
    with other.page.expect_file_chooser() as chooser:
        other.button("Open a mind…").click()
    chooser.value.set_files(path)
    other.page.get_by_role("heading", name="Go on where it stopped.").wait_for()
    drop(other, b"GGUF of something else", "wrong.state")
    said = other.page.get_by_role("alert")
    other.until(lambda: "The server did not take this" in said.inner_text())
    other.problems.clear()  # the console tells of the 400


def test_a_reload_keeps_the_tree(window: Callable[..., Shown], client: httpx.Client) -> None:
    shown = window()
    shown.say(NAME, 1)
    shown.say(ASKED, 2)
    shown.row(NAME).click()
    shown.say("What is 2 + 2?", 2)
    shown.ready()
    assert shown.page.get_by_role("treeitem").count() == 4
    assert "4" in shown.answer(2).inner_text()
    shown.row(ASKED).click()
    shown.say(ASKED, 3)
    assert "Anna" in shown.answer(3).inner_text()
    # A server that has forgotten the states gets the texts again.
    for state in client.get("/v1/states").json()["data"]:
        client.delete(f"/v1/states/{state['id']}")
    shown.say(ASKED, 4)
    assert "Anna" in shown.answer(4).inner_text()
    assert "had forgotten this mind. It has read 3 turns of text again" in (
        shown.page.get_by_role("status").text_content() or ""
    )
    shown.problems.clear()  # the console tells of the 404
    shown.ready()
    shown.row("What is 2 + 2?").click()
    shown.say(ASKED, 3)
    assert "Anna" in shown.answer(3).inner_text()
    # One conversation of two is deleted, with its states.
    shown.button("New conversation").click()
    shown.say(STORY, 1)
    before = len(client.get("/v1/states").json()["data"])
    shown.button(f"Delete: {STORY}").click()
    shown.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    shown.until(lambda: len(client.get("/v1/states").json()["data"]) == before - 1)
    shown.ready()
    assert shown.button(f"Delete: {NAME}").count() == 1
    assert shown.button(f"Delete: {STORY}").count() == 0


def test_two_tabs(window: Callable[..., Shown]) -> None:
    """What is said in one is seen in the other."""
    shown = window()
    shown.say(NAME, 1)
    other = Shown(shown.page.context.new_page(), shown.url)
    other.ready()
    other.say(ASKED, 2)
    shown.answer(2).get_by_role("button", name="Copy the answer").wait_for()
    assert "Anna" in shown.answer(2).inner_text()
    shown.say(STORY, 3)
    other.until(lambda: other.page.get_by_role("treeitem").count() == 4)
    shown.button(f"Delete: {NAME}").click()
    shown.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    other.page.get_by_role("heading", name="Talk, rewind, branch.").wait_for()
    assert other.problems == []


def test_the_meter_stays_flat(window: Callable[..., Shown], service: Service) -> None:
    shown = window()
    meter = shown.page.get_by_role("region", name="Memory")
    shown.say(NAME, 1)
    shown.until(lambda: "after" in meter.inner_text())
    size = meter.locator("strong").inner_text()
    shape = service.model._shape
    state = 4 * (service.model.n_layer * shape.layer_size + shape.width)
    assert size == f"{round(state / 1000)} kB"
    for number in (2, 3):
        shown.say(STORY, number)
    assert meter.locator("strong").inner_text() == size
    assert "3 minds on the server" in meter.inner_text()
    assert "Attention would keep" in meter.inner_text()
    assert "token" in meter.get_by_role("img").get_attribute("aria-label")


def test_settings(window: Callable[..., Shown]) -> None:
    shown = window()
    shown.button("Settings").click()
    dialog = shown.page.get_by_role("dialog", name="Settings")
    dialog.get_by_label("System prompt").fill("Be kind.")
    dialog.get_by_label("Temperature").fill("0")
    dialog.get_by_label("Seed").fill("7")
    dialog.get_by_role("button", name="Done").click()
    shown.say(NAME, 1)
    shown.ready()
    shown.say(ASKED, 2)
    assert "Anna" in shown.answer(2).inner_text()
    for body in shown.bodies:
        assert (body["temperature"], body["seed"]) == (0, 7)
        assert "top_p" not in body  # the model's own
        assert body["state"].startswith("st_")  # the first one behind the system text
    assert shown.row("Beginning").filter(has_text="Be kind.").count() == 1


def test_thoughts(window: Callable[..., Shown]) -> None:
    from rwkv_edge.chat.templates import TEMPLATES

    with serving(
        Service(Model(threads=1), Options(template=TEMPLATES["g1"], max_tokens=60, think_tokens=20))
    ) as url:
        shown = window(url)
        shown.page.get_by_label("Thinking", exact=True).select_option("Thinking: on")
        shown.say(STORY, 1)
        [body] = shown.bodies
        assert body["reasoning_effort"] == "medium"
        thoughts = shown.answer(1).get_by_role("group").filter(has_text="Thoughts")
        assert thoughts.get_attribute("open") is None
        thoughts.get_by_text("Thoughts").click()
        assert thoughts.locator("p").is_visible()


def test_the_keyboard(window: Callable[..., Shown]) -> None:
    shown = window()
    shown.text.press("Shift+Enter")
    shown.text.press_sequentially("one")
    shown.text.press("Shift+Enter")
    shown.text.press_sequentially("two")
    assert shown.text.input_value() == "\none\ntwo"
    assert shown.bodies == []
    shown.say(NAME, 1)
    shown.text.press("ArrowUp")
    assert shown.text.input_value() == NAME
    assert shown.page.get_by_text("Changing what you said").is_visible()
    shown.text.press("Escape")
    assert shown.text.input_value() == ""
    shown.text.press("ArrowUp")
    shown.say("My name is Tom.", 1)
    assert "Tom" in shown.answer(1).inner_text()
    assert shown.row("My name is").count() == 2
    # Every control is reached by Tab, and shows that it is; the tree is one stop.
    seen: set[str] = set()
    for _ in range(80):
        shown.page.keyboard.press("Tab")
        name, outlined = shown.page.evaluate(
            """() => {
              const at = document.activeElement, style = getComputedStyle(at);
              const frame = getComputedStyle(at.closest("form, button, body"));
              if (at === document.body) return ["", true]; // between the last one and the first
              const name = at.getAttribute("aria-label") || at.textContent.trim() || at.id;
              return [name, style.outlineStyle !== "none" || frame.boxShadow !== "none"];
            }"""
        )
        assert outlined, name
        seen.add(name)
    names = shown.page.evaluate(
        """() => [...document.querySelectorAll("button, select, textarea, a[href], summary")]
          .filter((each) => each.checkVisibility({ visibilityProperty: true })
                            && !each.disabled && each.tabIndex >= 0 && !each.closest("dialog"))
          .map((each) => each.getAttribute("aria-label") || each.textContent.trim() || each.id)"""
    )
    assert all(names)
    assert set(names) <= seen
    # Arrows move in it.
    shown.row("My name is Tom.").focus()
    shown.page.keyboard.press("Home")
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("Enter")
    assert "Anna" in shown.answer(1).inner_text()


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (pixel) => {
    const [r, g, b] = [...pixel].slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const seen = each.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!own || !seen || each.closest(".unseen, .skip, .toast, noscript, select, :disabled")) {
      continue;
    }
    const back = [];
    for (let at = each; at; at = at.parentElement) {
      back.unshift(getComputedStyle(at).backgroundColor);
    }
    const [below, text] = [light(over(back)), light(over([...back, getComputedStyle(each).color]))];
    const ratio = (Math.max(below, text) + 0.05) / (Math.min(below, text) + 0.05);
    const name = each.className || each.tagName;
    found.push([Math.round(100 * ratio) / 100, name, each.textContent.slice(0, 30)]);
  }
  return found.sort((one, other) => one[0] - other[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours(window: Callable[..., Shown], scheme: str) -> None:
    """As the system has it, until the reader chooses; and text is 4.5 times what is below it."""
    shown = window(color_scheme=scheme, reduced_motion="reduce")

    def paper() -> int:
        color = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", color)[0])

    def contrast() -> None:
        found = shown.page.evaluate(CONTRAST)
        assert len(found) > 10
        assert found[0][0] >= 4.5, found[:5]

    assert (paper() < 64) == (scheme == "dark")
    contrast()
    shown.say(NAME, 1)
    shown.say(STORY, 2)
    shown.row(NAME).click()
    contrast()
    shown.button("Settings").click()
    contrast()
    shown.page.keyboard.press("Escape")
    switch = shown.button("Dark theme")
    assert switch.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    switch.click()
    assert (paper() < 64) == (scheme != "dark")
    shown.ready()
    assert (paper() < 64) == (scheme != "dark")
    shown.button("Settings").click()
    shown.page.get_by_label("As the system").check(force=True)
    shown.page.keyboard.press("Escape")
    assert (paper() < 64) == (scheme == "dark")


def test_a_phone(window: Callable[..., Shown]) -> None:
    size = {"width": 360, "height": 640}
    shown = window(viewport=size, reduced_motion="reduce")
    assert not shown.wide()
    shown.page.get_by_label("Number of answers").select_option("3 answers")
    shown.say(STORY)
    assert not shown.wide()
    shown.page.get_by_label("Number of answers").select_option("1 answer")
    shown.say("a" * 300, 2)
    assert not shown.wide()
    panel = shown.page.get_by_role("complementary", name="Mind")
    assert panel.count() == 0  # not for a screen reader either
    shown.page.get_by_role("button", name="tokens").click()
    panel.get_by_role("treeitem").nth(1).wait_for()
    assert not shown.wide()
    shown.page.keyboard.press("Escape")
    assert panel.count() == 0
    shown.button("Conversations").click()
    shown.button("Settings").click()
    dialog = shown.page.get_by_role("dialog", name="Settings")
    box = dialog.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert not shown.wide()
    dialog.get_by_role("button", name="Done").click()
    shown.button("Conversations").click()
    shown.button("New conversation").click()
    assert shown.page.get_by_role("heading", name="Talk, rewind, branch.").is_visible()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (429, None, "queue is full. Try again in 7 seconds."),
        (503, None, "stopping, or not ready"),
        (400, "x", "did not take this: that is wrong."),
        (500, None, "The server failed: that is wrong."),
        (0, None, "cannot be reached"),
        (200, "cut", "broke before the answer ended"),
        (200, "event", "The server failed: that is wrong."),
    ],
)
def test_refusals(window: Callable[..., Shown], status: int, code: str | None, said: str) -> None:
    """Are sentences; and what was written stays in the field."""
    shown = window()
    error = json.dumps({"error": {"message": "that is wrong", "code": code}})

    def refuse(route: Any) -> None:
        if status == 0:
            route.abort()
        elif status == 200:
            body = f"data: {error}\n\n" if code == "event" else ": ping\n\n"
            route.fulfill(status=200, content_type="text/event-stream", body=body)
        else:
            headers = {"retry-after": "7", "content-type": "application/json"}
            route.fulfill(status=status, headers=headers, body=error)

    shown.page.route("**/chat/completions", refuse)
    shown.text.fill(NAME)
    shown.text.press("Enter")
    shown.until(lambda: said in shown.page.get_by_role("alert").inner_text())
    assert shown.text.input_value() == NAME
    assert shown.page.get_by_role("article").count() == 0
    assert len(shown.problems) == (status != 200)  # the console tells of it
    shown.problems.clear()
    shown.page.unroute("**/chat/completions")
    shown.text.press("Enter")
    shown.answer(1).get_by_role("button", name="Copy the answer").wait_for()
    assert shown.page.get_by_role("alert").inner_text() == ""


def test_an_answer_that_breaks_off(window: Callable[..., Shown]) -> None:
    """What came stays, and the next turn knows it."""
    shown = window()
    chunk = {"choices": [{"index": 0, "delta": {"content": "Nice to meet"}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\n"
    shown.page.route("**/chat/completions", lambda route: route.fulfill(status=200, body=body))
    shown.text.fill(NAME)
    shown.text.press("Enter")
    shown.answer(1).get_by_text("broke before the answer ended").wait_for()
    shown.page.unroute("**/chat/completions")
    shown.say(ASKED, 2)
    assert "Anna" in shown.answer(2).inner_text()


def test_a_key(window: Callable[..., Shown], service: Service) -> None:
    """Is asked for, and kept in this tab alone."""
    with serving(Service(service.model), keys=["the key of a test"]) as url:
        shown = window(url)
        dialog = shown.page.get_by_role("dialog", name="Settings")
        assert "wants a key" in shown.page.locator("#alert").inner_text()
        dialog.get_by_label("API key").fill("a wrong key")
        dialog.get_by_role("button", name="Done").click()
        shown.until(lambda: "does not know this key" in shown.page.locator("#alert").inner_text())
        dialog.get_by_label("API key").fill("the key of a test")
        dialog.get_by_role("button", name="Done").click()
        shown.until(lambda: shown.page.get_by_role("alert").inner_text() == "")
        shown.say(NAME, 1)
        shown.problems.clear()  # the console tells of each 401
        assert not any("key" in url.replace("/page/", "") for url in shown.urls)
        kept = shown.page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert "the key of a test" not in kept[0]
        assert "the key of a test" in kept[1]


MARKDOWN = """async (text) => {
  const { show } = await import(new URL("page/markdown.js", location.href));
  const place = document.createElement("div");
  for (let i = 1; i < Math.min(text.length, 400); i += 7) show(place, text.slice(0, i));
  show(place, text);
  const again = document.createElement("div");
  show(again, text);
  // A stream ends where the whole text does.
  if (again.innerHTML !== place.innerHTML) throw new Error("not the same");
  for (const each of place.querySelectorAll("svg, figcaption")) each.remove();
  const beside = / (target|rel|title|tabindex|aria-label|role|class)="[^"]*"/g;
  return place.innerHTML.replaceAll(beside, "");
}"""

WRITTEN = [
    ("# A\n### B #", "<h3>A</h3><h5>B</h5>"),
    ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    ("*a* **b** ***c*** ~~d~~ _e_ f_g_h 2*3*4", None),
    ("`a*b*` `` c`d `` \\*e\\*", "<p><code>a*b*</code> <code>c`d</code> *e*</p>"),
    ("- a\n- b\n  1. c\n  2. d\n- e", None),
    ("3. a\n4. b", '<ol start="3"><li><span>a</span></li><li><span>b</span></li></ol>'),
    ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    (
        "```py\na < b\n\n*c*\n```\nd",
        "<figure><pre><code>a &lt; b\n\n*c*</code></pre></figure><p>d</p>",
    ),
    ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
    ("| a | b |\n|---|--:|\n| 1 | 2 \\| 3 |", None),
    ("[a](https://b.example/c)", '<p><a href="https://b.example/c">a</a></p>'),
    (
        "see http://b.example/c_d_e.",
        '<p>see <a href="http://b.example/c_d_e">http://b.example/c_d_e</a>.</p>',
    ),
    ("[a](javascript:alert(1))", "<p>a (javascript:alert(1))</p>"),
    ("[a](/b) [c](data:text/html,d)", "<p>a (/b) c (data:text/html,d)</p>"),
    ("![a](https://b.example/c.png)", '<p><a href="https://b.example/c.png">a</a></p>'),
    ("<img src=x onerror=y>", "<p>&lt;img src=x onerror=y&gt;</p>"),
    ("a * b ** c _ d", "<p>a * b ** c _ d</p>"),
]
LOOKED_AT = {
    2: "<p><em>a</em> <strong>b</strong> <strong><em>c</em></strong> <del>d</del> <em>e</em> f_g_h "
    "2<em>3</em>4</p>",
    4: "<ul><li><span>a</span></li><li><span>b</span><ol><li><span>c</span></li><li><span>d</span>"
    "</li></ol></li><li><span>e</span></li></ul>",
    9: "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2 | 3</td>"
    "</tr></tbody></table></div>",
}


def test_markdown(window: Callable[..., Shown]) -> None:
    shown = window()
    for i, (text, html) in enumerate(WRITTEN):
        assert shown.page.evaluate(MARKDOWN, text) == (html or LOOKED_AT[i]), text


def test_markdown_that_wants_too_much(window: Callable[..., Shown]) -> None:
    """Time is linear: a square of these would take minutes."""
    shown = window()
    many = 200_000
    parts = ["*", "*a ", "**a_", "[", "[a](", "`", "`a``", "> ", "- ", "|", "|-", "#", "h", " "]
    parts += ["\\", "\n", "- a\n", "- a\n\n", "> a\n", "https://a.", "_", "~~", "```", "1. ", "("]
    texts = [part * (many // len(part)) for part in parts]
    texts += ["```" + "a" * many + "`", "# " + "#" * many + "x", "a|b\n-|" + " " * many + "x"]
    texts += ["http://" + "." * many, "- a" + "\n" * many + "b", "`" + " " * many + "a`"]
    for text in texts:
        shown.page.evaluate(MARKDOWN, text)
