# SPDX-License-Identifier: Apache-2.0
"""A conversation by the C library leaves the state that `Conversation` leaves, to the bit, and the
same text. Files of states are the same bytes from both. What else it does, tests/capi/test_capi.c
checks on every system.

The C++ build makes the library (tools/run_tests.py).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rwkv_edge
import tiny
from conftest import GetModel
from refusal import refuses
from rwkv_edge import Conversation, Model, State
from rwkv_edge.state import SamplerState, StateShape

ROOT = Path(__file__).parents[2]
LIBRARY = Path(os.environ.get("RWKV_EDGE_LIBRARY", ROOT / "build" / "release" / "librwkv_edge.so"))
needs_library = pytest.mark.skipif(
    not LIBRARY.is_file() or sys.platform != "linux",
    reason="needs librwkv_edge.so of the C++ build (tools/run_tests.py, or RWKV_EDGE_LIBRARY)",
)


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
        ("max_tokens", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("min_p", ctypes.c_double),
        ("typical_p", ctypes.c_double),
        ("presence_penalty", ctypes.c_double),
        ("frequency_penalty", ctypes.c_double),
        ("penalty_decay", ctypes.c_double),
        ("penalty_window", ctypes.c_int64),
        ("banned", ctypes.c_void_p),
        ("n_banned", ctypes.c_size_t),
        ("stop", ctypes.c_void_p),
        ("n_stop", ctypes.c_size_t),
        ("stop_tokens", ctypes.c_void_p),
        ("n_stop_tokens", ctypes.c_size_t),
        ("chat_template", ctypes.c_char_p),
    )


PIECE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t
)
SAMPLING = {"temperature": 1.3, "top_p": 0.9, "presence_penalty": 0.2, "frequency_penalty": 0.2}
QUESTIONS = [
    "Hello!",
    "  What is 2 plus 2?\r\n\n Say it twice. ",
    "Tell me a story.",
    "\u3000more\u00a0",
]


@needs_library
@pytest.mark.parametrize(
    ("template", "most"), [("world", 64), ("raven", 3), ("g1", 40), ("raw", 20)]
)
def test_a_chat_in_c_is_one_in_python(template: str, most: int) -> None:
    library = ctypes.CDLL(str(LIBRARY))
    path = str(Model().path).encode()
    model, session = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.rwkv_edge_model_open(path, None, ctypes.byref(model)) == 0
    assert library.rwkv_edge_session_new(model, ctypes.byref(session)) == 0
    library.rwkv_edge_model_free(model)  # the session keeps it
    system = "You are kind." if template != "raw" else None
    chat = Conversation(Model(), template=template, system=system or "")
    size = chat.model._shape.layer_size * chat.model.n_layer + chat.model.n_embd
    for seed, question in enumerate(QUESTIONS):
        pieces: list[bytes] = []

        def add(
            _user: int, text: ctypes._Pointer[ctypes.c_char], n: int, to: list[bytes] = pieces
        ) -> int:
            to.append(ctypes.string_at(text, n))
            return 0

        options = Options(ctypes.sizeof(Options), seed, most, penalty_decay=0.996, typical_p=1.0)
        for name, value in SAMPLING.items():
            setattr(options, name, value)
        options.chat_template = template.encode()
        told = system.encode() if system and not seed else None
        status = library.rwkv_edge_chat(
            session, told, question.encode(), ctypes.byref(options), PIECE(add), None, None
        )
        assert status == 0, ctypes.c_char_p(library.rwkv_edge_last_error()).value
        expected = "".join(chat.ask(question, seed=seed, max_tokens=most, **SAMPLING))  # type: ignore[arg-type]
        assert b"".join(pieces).decode() == expected
        found = np.zeros(size, np.float32)
        assert (
            library.rwkv_edge_state_get(
                session, found.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(size)
            )
            == 0
        )
        state = chat.session.state
        assert state.output is not None
        np.testing.assert_array_equal(found, np.concatenate([state.data, state.output]))
    library.rwkv_edge_session_free(session)


class CSession:
    """A session of the C library."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.rwkv_edge_last_error.restype = ctypes.c_char_p
        model, self.pointer = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("model_open", str(path).encode(), None, ctypes.byref(model))
        self.call("session_new", model, ctypes.byref(self.pointer))
        self.library.rwkv_edge_model_free(model)

    def call(self, name: str, *arguments: object) -> None:
        if getattr(self.library, f"rwkv_edge_{name}")(*arguments):
            raise ValueError(self.library.rwkv_edge_last_error().decode())

    def feed(self, tokens: list[int]) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        self.call("feed", self.pointer, ids, ctypes.c_size_t(len(tokens)), None, None, None)

    def save(self, path: Path) -> None:
        self.call("state_save", self.pointer, str(path).encode())

    def load(self, path: Path, *, any_model: bool = False) -> None:
        self.call("state_load", self.pointer, str(path).encode(), int(any_model))

    def __del__(self) -> None:
        self.library.rwkv_edge_session_free(self.pointer)


@needs_library
@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_a_state_file_is_the_same_from_c_and_from_python(
    tiny_model: GetModel, version: str, tmp_path: Path
) -> None:
    path, _ = tiny_model("f32", "d128", version)
    ours, from_c, again = (tmp_path / name for name in ("python", "c", "again"))
    session, other = Model(path).session(), CSession(path)
    session.state.save(ours)
    other.save(from_c)  # of the beginning, where no token has an output
    assert from_c.read_bytes() == ours.read_bytes()
    session.feed([3, 1, 4, 1, 5])
    other.feed([3, 1, 4, 1, 5])
    session.state.save(ours)
    other.save(from_c)
    assert from_c.read_bytes() == ours.read_bytes()
    # each goes on from the other's, and counts on
    third = CSession(path)
    third.load(ours)
    third.save(again)
    assert again.read_bytes() == ours.read_bytes()
    third.feed([9])
    third.save(again)
    session.reset(State.load(from_c))
    session.feed([9])
    assert session.tokens == 6
    session.state.save(ours)
    assert again.read_bytes() == ours.read_bytes()


@needs_library
def test_what_python_says_in_a_state_file_c_reads(tiny_model: GetModel, tmp_path: Path) -> None:
    """A text, a sampler, half precision, an unknown number of tokens, another model, a tuning."""
    path, _ = tiny_model("f32", "d128")
    session = Model(path).session()
    session.feed([7, 8])
    state, file = session.state, tmp_path / "a.state"
    replace(state, text="said", sampler=SamplerState(5, (1, 2)), tokens=None).save(file)
    other = CSession(path)
    other.load(file)
    other.save(tmp_path / "c.state")
    found = State.load(tmp_path / "c.state")
    assert (found.tokens, found.text, found.sampler) == (None, None, None)
    np.testing.assert_array_equal(found.data, state.data)
    state.save(file, type="f16", replace=True)
    other.load(file)
    other.save(tmp_path / "c.state")
    np.testing.assert_array_equal(
        State.load(tmp_path / "c.state").data, State.load(file).data, strict=True
    )
    replace(state, fingerprint="0" * 64).save(file, replace=True)
    with refuses(ValueError, file, "a state of another model, .* with fingerprint 0+, expected "):
        other.load(file)
    other.load(file, any_model=True)
    shape = StateShape("time_state", 3, (("time_state", dict(state.shape.parts)["wkv"]),))
    values = np.random.default_rng(1).normal(size=shape.n_layer * shape.layer_size)
    tuned = State(values.astype(np.float32), shape, tokens=0)
    tuned.save(file, replace=True)
    other.load(file)
    other.save(tmp_path / "c.state")
    session.reset(State.load(file))
    session.state.save(file, replace=True)
    assert (tmp_path / "c.state").read_bytes() == file.read_bytes()


def test_the_header_has_the_version_of_the_package() -> None:
    header = (ROOT / "cpp" / "capi" / "rwkv_edge.h").read_text("utf-8")
    found = re.search(r"^#define RWKV_EDGE_VERSION_NUMBER (\d+)$", header, re.MULTILINE)
    assert found
    number = int(found[1])
    version = f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
    assert version == rwkv_edge.__version__
