# SPDX-License-Identifier: Apache-2.0
"""The model for lm-evaluation-harness, with the real one where it is there, on local tasks."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rwkv_edge import Model, UnsupportedError, scoring
from rwkv_edge.model import bundled_model

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval not installed: rwkv-edge[reference]"
)

CAPITALS = [("France", ["Rome", "Paris"], 1), ("Peru", ["Lima", "Oslo", "Bern"], 0)]
SUMS = [("What is 3 plus 4?", "3 + 4 = 7"), ("What is 9 minus 5?", "wrong")]
TEXTS = ["User: Hello\n\nAssistant: Hello! How can I help you?\n\n", "Long ago, a brave fox. " * 40]
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "choice": (
        {
            "output_type": "multiple_choice",
            "doc_to_text": "User: What is the capital of {{country}}?\n\nAssistant:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        [
            {
                "country": country,
                "choices": [f" The capital of {country} is {city}." for city in cities],
                "label": label,
            }
            for country, cities, label in CAPITALS
        ],
    ),
    "text": (
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
        [{"text": text} for text in TEXTS],
    ),
    "answer": (
        {
            "output_type": "generate_until",
            "doc_to_text": "User: {{question}}\n\nAssistant:",
            "doc_to_target": " {{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 20},
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
        },
        [{"question": question, "answer": answer} for question, answer in SUMS],
    ),
}


def write_tasks(folder: Path) -> str:
    """The tasks as files for the harness; returns their names."""
    for name, (task, rows) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(json.dumps(source | task))
    return ",".join(f"local_{name}" for name in TASKS)


def samples(folder: Path, name: str) -> list[dict[str, Any]]:
    """What the harness has written of a task."""
    (path,) = (folder / "out").rglob(f"samples_local_{name}_*.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda line: int(line["doc_id"]))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "rwkv_edge.harness", raising=False)
    with pytest.raises(UnsupportedError, match=r"pip install 'rwkv-edge\[eval\]'"):
        importlib.import_module("rwkv_edge.harness")


@pytest.mark.torch
@needs_harness
def test_the_real_harness(tmp_path: Path) -> None:
    names = write_tasks(tmp_path)
    command = f"run --model rwkv_edge --tasks {names} --batch_size 3 --log_samples"
    subprocess.run(
        [
            *(sys.executable, "-m", "rwkv_edge.harness", *command.split()),
            *("--model_args", f"path={bundled_model()},threads=1"),
            *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        check=True,
        timeout=600,
    )

    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    model = Model(threads=1)
    encode = model.tokenizer.encode
    for line, row in zip(samples(tmp_path, "choice"), TASKS["choice"][1], strict=True):
        context = [0, *encode(f"User: What is the capital of {row['country']}?\n\nAssistant:")]
        expected = scoring.score(model, [(context, encode(text)) for text in row["choices"]])
        given = [(float(logprob), greedy == "True") for ((logprob, greedy),) in line["resps"]]
        assert given == expected
    assert results["local_choice"]["acc,none"] == 1
    scores = scoring.score(model, [([0], encode(text)) for text in TEXTS])
    per_byte = -sum(logprob for logprob, _ in scores) / len("".join(TEXTS).encode())
    assert results["local_text"]["byte_perplexity,none"] == pytest.approx(math.exp(per_byte))
    for line, (question, _) in zip(samples(tmp_path, "answer"), SUMS, strict=True):
        prompt = [0, *encode(f"User: {question}\n\nAssistant:")]
        text = "".join(model.session().generate(prompt, stop="\n\n", temperature=0, max_tokens=20))
        assert line["resps"] == [[text]]
    assert results["local_answer"]["exact_match,none"] == 0.5


@pytest.mark.torch
@needs_harness
@pytest.mark.filterwarnings("ignore")  # of what the harness imports
def test_options() -> None:
    harness = importlib.import_module("rwkv_edge.harness")
    options = harness.generation_options
    greedy = {"max_tokens": 256, "top_p": 1.0, "temperature": 0.0}
    assert options({}) == ([], greedy)
    assert options({"until": "x", "do_sample": False, "temperature": 0.7}) == (["x"], greedy)
    assert options({"until": ["a", "b"], "temperature": 0.5, "max_gen_toks": 7, "top_k": 3}) == (
        ["a", "b"],
        {"max_tokens": 7, "top_p": 1.0, "temperature": 0.5, "top_k": 3},
    )
    assert options({"do_sample": True, "top_p": 0.9})[1]["temperature"] == 1.0
    with pytest.raises(ValueError, match="found num_beams, which are not known"):
        options({"num_beams": 4})
    with pytest.raises(ValueError, match="batch_size: found 0"):
        harness.HarnessModel(batch_size=0)
    model = harness.HarnessModel(batch_size="auto")
    assert model.batch_size == harness.BATCH_SIZE
    assert harness.after_end([0, 1]) == harness.after_end([1]) == [0, 1]
    plain = harness.HarnessModel(add_bos_token=False)
    assert [model._begun([5]), model._begun([])] == [[0, 5], [0]]
    assert [plain._begun([5]), plain._begun([])] == [[5], [0]]
