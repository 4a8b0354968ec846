# SPDX-License-Identifier: Apache-2.0
"""A conversation by the C library leaves the state that `Conversation` leaves, to the bit, and the
same text. What else it does, tests/capi/test_capi.c checks on every system.

The C++ build makes the library (tools/run_tests.py).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import rwkv_edge
from rwkv_edge import Conversation, Model

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


def test_the_header_has_the_version_of_the_package() -> None:
    header = (ROOT / "cpp" / "capi" / "rwkv_edge.h").read_text("utf-8")
    found = re.search(r"^#define RWKV_EDGE_VERSION_NUMBER (\d+)$", header, re.MULTILINE)
    assert found
    number = int(found[1])
    version = f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
    assert version == rwkv_edge.__version__
