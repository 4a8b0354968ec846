# SPDX-License-Identifier: Apache-2.0
"""How much nearer to the float model calibration brings a file than llama.cpp's quantizers do.

    python bench/quantization_quality.py MODEL.gguf CALIBRATION.txt HELD_OUT.txt --llama BIN

MODEL is an f32 file. BIN is a folder with llama-quantize, llama-imatrix and llama-perplexity, whose
Q4_K_M and Q4_0 get an imatrix of the same text. `--rough` makes MODEL rough first: its function
stays the same, and its columns get outliers as large as those of real models. `--in-llama` measures
each file with llama-perplexity too. `--mixtures` are bits a weight, or the name of a type, for the
bytes of its calibrated file. `--self` calibrates on what MODEL writes too. `--plot` draws KL
divergence against bytes a token.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from quantization_plot import Dot, svg
from rwkv_edge import Model
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import quantize
from rwkv_edge.convert.policy import SEARCHED, Known
from rwkv_edge.model_file import bytes_per_token
from rwkv_edge.quantization import perplexity
from rwkv_edge.quantization.calibrate import SELF, calibration
from rwkv_edge.quantization.fold import combined, foldings
from rwkv_edge.quantization.text import tokens_of, windows_of

SEED = 17
ATTEMPTS = 20


def roughen(source: Path, target: Path) -> None:
    """Log-normal column scales, and three input channels of the first att.output times 300."""
    model = Model(source)
    tensors = {tensor.name: tensor for tensor in model._file.tensors}
    rng = np.random.default_rng(SEED)
    factors = {}
    for folding in foldings(model.arch, set(tensors)):
        columns = tensors[folding.columns[0]].shape[-1]
        t = np.exp(rng.normal(0, 1 / folding.power, columns))
        if folding.columns[0] == "blk.0.time_mix_output.weight":
            t[rng.choice(columns, 3, replace=False)] *= 300
        factors[folding] = t.astype(np.float32)
    quantize(source, target, type="f32", known=Known(scales=combined(factors)))


def called(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def by_llama(tool: Path, model: Path, base: Path) -> str:
    """Mean KL divergence, as llama-perplexity prints it, which often ends before its last lines are
    written."""
    command = tool, "-m", model, "--kl-divergence", "--kl-divergence-base", base, "-c", "512"
    for _ in range(ATTEMPTS):
        found = re.search(r"Mean +KLD: +([-\d.]+)", called(*command))
        if found:
            return found[1]
    sys.exit(f"{tool}: no mean KL divergence of {model} in {ATTEMPTS} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--rough", action="store_true")
    parser.add_argument("--in-llama", action="store_true", help="measure with llama-perplexity too")
    parser.add_argument("--types", default="q4_k,q4_0", help="with calibration and without")
    parser.add_argument("--mixtures", default="q4_k", help="bits, or types for the size of theirs")
    parser.add_argument("--self", action="store_true", dest="own")
    parser.add_argument("--llama-types", default="Q4_0,Q4_K_M")
    parser.add_argument("--windows", type=int, default=64, help="of 512 tokens, to measure on")
    parser.add_argument("--tokens", type=int, help="of the text, to calibrate on")
    parser.add_argument("--plot", type=Path, metavar="SVG")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = arguments.model
        if arguments.rough:
            roughen(arguments.model, work / "rough.gguf")
            model = work / "rough.gguf"
        files = by_series(arguments, model, work)
        base = Model(arguments.model)  # the smooth one, which the rough one equals
        windows = windows_of(tokens_of(base, [arguments.held_out]), 512, "held out")
        windows = windows[: arguments.windows]
        if arguments.in_llama:
            perplexity.score(base, windows, save=work / "base")
        print("| file | bytes | bytes a token | KL | 95 % | same top | in llama.cpp |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        dots: dict[str, list[Dot]] = {}
        for series, name, path in files:
            scores = perplexity.score(Model(path), windows, base=base)
            kl = scores.divergence()
            assert scores.same_top is not None
            llama = ""
            if arguments.in_llama:
                llama = by_llama(arguments.llama / "llama-perplexity", path, work / "base")
            touched = bytes_per_token(ModelFile(path))
            print(
                f"| {series}: {name} | {path.stat().st_size:,} | {touched:,} | "
                f"{kl.mean:.6f} | {kl.low:.6f} to {kl.high:.6f} | {scores.same_top.mean():.2%} | "
                f"{llama} |",
                flush=True,
            )
            dots.setdefault(series, []).append(Dot(name, touched, kl.mean))
        if arguments.plot:
            arguments.plot.write_text(svg(dots), "utf-8")


def by_series(
    arguments: argparse.Namespace, model: Path, work: Path
) -> Iterator[tuple[str, str, Path]]:
    """Each file as it is made: the way, the type and the path, which the next one may take."""
    target, texts = work / "out.gguf", [arguments.calibration]
    if arguments.llama:
        half, imatrix = work / "f16.gguf", work / "imatrix.gguf"
        quantize(model, half, type="f16")
        called(
            arguments.llama / "llama-imatrix", "-m", half, "-f", arguments.calibration,
            "-o", imatrix, "-c", "512", "--chunks", "128", "--no-ppl",
        )  # fmt: skip
        for name in arguments.llama_types.split(","):
            quantizer = arguments.llama / "llama-quantize"
            called(quantizer, "--imatrix", imatrix, model, target, name, "1")
            yield "llama.cpp with imatrix", name, target
    types = [name for name in arguments.types.split(",") if name]
    for name in types:
        quantize(model, target, type=name)
        yield "plain", name, target
    sizes = {}
    for name in types:
        if name in SEARCHED:
            calibration(model, target, texts, type=name, tokens=arguments.tokens).run()
            sizes[name] = target.stat().st_size
            yield "calibrated", name, target
            if arguments.own:
                calibration(model, target, [SELF], type=name, tokens=arguments.tokens).run()
                yield "calibrated on its own text", name, target
    for mixture in filter(None, arguments.mixtures.split(",")):
        size = sizes.get(mixture)
        bits = None if size else float(mixture)
        found = quantize(model, target, bits=bits, size=size)
        assert found is not None
        yield "plain mixture", f"{found.bits:.1f} bits", target
        plan = calibration(model, target, texts, bits=bits, size=size, tokens=arguments.tokens)
        plan.run()
        assert plan.mixture is not None
        yield "calibrated mixture", f"{plan.mixture.bits:.1f} bits", target


if __name__ == "__main__":
    main()
