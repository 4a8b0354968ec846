# SPDX-License-Identifier: Apache-2.0
"""The library that stands in for rwkv.cpp's, called as rwkv.cpp's own Python files call it: the
same functions in the same order, with the same types of arguments.

The C++ build makes it (tools/run_tests.py). What it computes is compared with the Python package,
whose reader of .bin files is another one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from rwkv_edge import Model, State

LIBRARY = Path(
    os.environ.get(
        "RWKV_CPP_LIBRARY", Path(__file__).parents[2] / "build" / "release" / "librwkv.so"
    )
)
pytestmark = pytest.mark.skipif(
    not LIBRARY.is_file() or sys.platform != "linux",
    reason="needs librwkv.so of the C++ build (tools/run_tests.py, or RWKV_CPP_LIBRARY)",
)

Floats = NDArray[np.float32]
P_FLOAT, P_INT = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int32)
MODELS = [(version, shape) for version in tiny.VERSIONS for shape in tiny.VERSIONS[version]]
MODELS = [(version, shape) for version, shape in MODELS if version != "7a"]
ARGS, FILE, MODEL, UNSUPPORTED = 0x100, 0x200, 0x300, 9


class Library:
    """The calls of rwkv.cpp's rwkv_cpp_shared_library.py."""

    def __init__(self) -> None:
        self.library = library = ctypes.cdll.LoadLibrary(str(LIBRARY))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        buffers = [P_FLOAT, P_FLOAT, P_FLOAT]
        eval_types = [pointer, P_INT, size, *buffers]
        for name, arguments, result in (
            ("init_from_file", [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32], pointer),
            ("eval", [pointer, ctypes.c_int32, *buffers], ctypes.c_bool),
            ("eval_sequence", eval_types, ctypes.c_bool),
            ("eval_sequence_in_chunks", [*eval_types[:3], size, *buffers], ctypes.c_bool),
            ("get_n_vocab", [pointer], size),
            ("get_n_embed", [pointer], size),
            ("get_n_layer", [pointer], size),
            ("get_state_buffer_element_count", [pointer], ctypes.c_uint32),
            ("get_logits_buffer_element_count", [pointer], ctypes.c_uint32),
            ("free", [pointer], None),
            ("quantize_model_file", [ctypes.c_char_p] * 3, ctypes.c_bool),
            ("get_system_info_string", [], ctypes.c_char_p),
            # of older versions, or not in that file
            ("gpu_offload_layers", [pointer, ctypes.c_uint32], ctypes.c_bool),
            ("get_arch_version_major", [pointer], ctypes.c_uint32),
            ("get_arch_version_minor", [pointer], ctypes.c_uint32),
            ("get_state_len", [pointer], size),
            ("get_logits_len", [pointer], size),
            ("init_state", [pointer, P_FLOAT], None),
            ("clone_context", [pointer, ctypes.c_uint32], pointer),
            ("set_print_errors", [pointer, ctypes.c_bool], None),
            ("get_print_errors", [pointer], ctypes.c_bool),
            ("get_last_error", [pointer], ctypes.c_int),
        ):
            function = getattr(library, f"rwkv_{name}")
            function.argtypes, function.restype = arguments, result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, f"rwkv_{name}")


def address(values: Floats | None) -> Any:
    return ctypes.cast(0 if values is None else values.ctypes.data, P_FLOAT)


class Context:
    """The calls of rwkv.cpp's rwkv_cpp_model.py, with numpy's arrays."""

    def __init__(self, path: Path) -> None:
        self.library = Library()
        self.pointer = self.library.init_from_file(str(path).encode(), 2, 0)
        assert self.pointer is not None
        self.n_state = self.library.get_state_buffer_element_count(self.pointer)
        self.n_logits = self.library.get_logits_buffer_element_count(self.pointer)

    def eval(self, token: int, state: Floats | None) -> tuple[Floats, Floats]:
        logits, after = np.zeros(self.n_logits, np.float32), np.zeros(self.n_state, np.float32)
        assert self.library.eval(
            self.pointer, ctypes.c_int32(token), address(state), address(after), address(logits)
        )
        return logits, after

    def eval_sequence(
        self, tokens: list[int], state: Floats | None, chunk: int | None = None
    ) -> tuple[Floats, Floats]:
        logits, after = np.zeros(self.n_logits, np.float32), np.zeros(self.n_state, np.float32)
        ids = ctypes.cast((ctypes.c_int32 * len(tokens))(*tokens), P_INT)
        buffers = address(state), address(after), address(logits)
        size = ctypes.c_size_t(len(tokens))
        if chunk is None:
            assert self.library.eval_sequence(self.pointer, ids, size, *buffers)
        else:
            chunks = ctypes.c_size_t(chunk)
            assert self.library.eval_sequence_in_chunks(self.pointer, ids, size, chunks, *buffers)
        return logits, after

    def free(self) -> None:
        self.library.free(self.pointer)


def in_their_order(state: State, layers: int) -> Floats:
    """Of each layer ffn_xx, att_xx, and then the heads or aa, bb, pp."""
    parts = state.numpy()
    rest = [name for name in parts if name not in ("ffn_shift", "att_shift")]
    names = ["ffn_shift", "att_shift", *rest]
    rows = [parts[name].reshape(layers, -1) for name in names]
    return np.concatenate(rows, axis=1).reshape(-1)


@pytest.mark.parametrize(("version", "shape"), MODELS)
def test_their_calls(tmp_path: Path, version: str, shape: str) -> None:
    weights = tiny.random_weights(tiny.VERSIONS[version][shape], seed=7)
    path = ck.write(tmp_path, ck.ggmf_of(weights).to_bytes(), "model.bin")
    context, model = Context(path), Model(path, threads=2)
    session = model.session()
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    library = context.library
    assert library.get_n_vocab(context.pointer) == context.n_logits == model.n_vocab
    assert library.get_n_embed(context.pointer) == model.n_embd
    assert library.get_n_layer(context.pointer) == model.n_layer
    major, minor = (library.__getattr__(f"get_arch_version_{x}") for x in ("major", "minor"))
    gated = 2 if version in ("5.1", "5.2") else 1 if version == "5.0" else 0
    assert (major(context.pointer), minor(context.pointer)) == (int(version[0]), gated)
    state = None
    for token in tokens[:3]:
        logits, state = context.eval(token, state)
        np.testing.assert_array_equal(logits, session.feed([token]))
    assert state is not None
    np.testing.assert_array_equal(state, in_their_order(session.state, model.n_layer))
    expected = session.feed(tokens[3:])
    for chunk in (None, 2, 64):
        logits, after = context.eval_sequence(tokens[3:], state, chunk)
        np.testing.assert_array_equal(logits, expected)
        np.testing.assert_array_equal(after, in_their_order(session.state, model.n_layer))
    context.free()


def test_gguf_and_a_clone() -> None:
    model = Model()
    context = Context(model.path)
    session = model.session()
    first = np.zeros(context.n_state, np.float32)
    context.library.init_state(context.pointer, address(first))
    from_first, _ = context.eval(42, first)
    from_null, state = context.eval(42, None)
    np.testing.assert_array_equal(from_first, from_null)
    np.testing.assert_array_equal(from_null, session.feed([42]))
    clone = context.library.clone_context(context.pointer, 1)
    context.free()
    logits = np.zeros(model.n_vocab, np.float32)
    assert context.library.eval(clone, 7, address(state), address(None), address(logits))
    np.testing.assert_array_equal(logits, session.feed([7]))
    # no logits, no state, and no tokens are all fine
    assert context.library.eval(clone, 7, address(state), address(None), address(None))
    assert context.library.eval_sequence(
        clone, None, 8, address(None), address(None), address(None)
    )
    assert not context.library.gpu_offload_layers(clone, 2)
    context.library.free(clone)


def test_errors_are_flags_and_texts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = Library()
    assert library.get_print_errors(None)
    assert library.init_from_file(str(tmp_path / "no.bin").encode(), 2, 0) is None
    assert "no.bin" in capfd.readouterr().err
    assert library.get_last_error(None) & 0xF00 == FILE
    assert library.get_last_error(None) == 0
    library.set_print_errors(None, False)
    try:
        bad = ck.write(tmp_path, b"fmgg" + bytes(40), "bad.bin")
        assert library.init_from_file(str(bad).encode(), 2, 0) is None
        assert library.get_last_error(None) & 0xF00 == MODEL
        assert library.init_from_file(str(Model().path).encode(), 0, 0) is None
        assert library.get_last_error(None) == ARGS
        assert not library.quantize_model_file(b"a", b"b", b"Q4_0")
        assert library.get_last_error(None) == UNSUPPORTED
        context = Context(Model().path)
        assert not library.get_print_errors(context.pointer)
        logits = np.zeros(context.n_logits, np.float32)
        outside = context.n_logits, address(None), address(None), address(logits)
        assert not library.eval(context.pointer, *outside)
        assert library.get_last_error(context.pointer) == ARGS
        ids = ctypes.cast((ctypes.c_int32 * 1)(1), P_INT)
        nothing = address(None), address(None), address(logits)
        assert not library.eval_sequence(context.pointer, ids, 0, *nothing)
        assert library.get_last_error(context.pointer) == ARGS
        assert not library.eval_sequence_in_chunks(context.pointer, ids, 1, 0, *nothing)
        assert library.get_last_error(context.pointer) == ARGS
        assert capfd.readouterr().err == ""
        context.free()
    finally:
        library.set_print_errors(None, True)
    assert library.get_system_info_string()


@pytest.mark.parametrize("kind", [kind for kind in ck.GGMF_TYPES if kind != "f32"])
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_types(tmp_path: Path, version: str, kind: str) -> None:
    weights = tiny.random_weights(tiny.VERSIONS[version]["d128"], seed=7)
    path = ck.write(tmp_path, ck.ggmf_of(weights, kind).to_bytes(), "model.bin")
    context = Context(path)
    logits, _ = context.eval_sequence([3, 1, 4], None)
    np.testing.assert_array_equal(logits, Model(path, threads=2).session().feed([3, 1, 4]))
    context.free()


def damaged() -> list[tuple[str, bytes]]:
    file = ck.ggmf_of(tiny.random_weights(tiny.VERSIONS["7"]["d128"], seed=7), "q8_0")
    whole = file.to_bytes()
    cut = [(f"cut at {n}", whole[:n]) for n in (3, 20, 30, 200, len(whole) // 2, len(whole) - 1)]
    flipped = [
        (f"byte {at}", whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        for at in [*range(4, 60), *range(60, 6000, 61)]
    ]
    return cut + flipped


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever a file holds, the answer is an error or a model that runs."""
    library = Library()
    library.set_print_errors(None, False)
    refused = 0
    try:
        for _, data in damaged():
            path = ck.write(tmp_path, data, "model.bin")
            pointer = library.init_from_file(str(path).encode(), 1, 0)
            if pointer is None:
                assert library.get_last_error(None) != 0
                refused += 1
            else:
                assert library.eval(pointer, 1, address(None), address(None), address(None))
                library.free(pointer)
    finally:
        library.set_print_errors(None, True)
    assert refused > 20
