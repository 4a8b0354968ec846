# SPDX-License-Identifier: Apache-2.0
"""Models for EleutherAI's lm-evaluation-harness (extra `eval`), as `--model rwkv_edge`.

    python -m rwkv_edge.harness run --model rwkv_edge --model_args path=model.gguf --tasks NAMES

is its command `lm-eval` with this model known to it. A release of it that reads the entry points
lm_eval.models finds the model by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._core import UnsupportedError
from .generation import Sampling
from .model import Model
from .scoring import score, several
from .tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError:
    raise UnsupportedError(
        "the evaluation harness needs a package: pip install 'rwkv-edge[eval]'"
    ) from None

BATCH_SIZE = 16
MAX_TOKENS = 256  # of an answer, where the task does not say


@register_model("rwkv_edge")
class HarnessModel(TemplateLM):
    """No text is too long, so none is cut."""

    def __init__(
        self,
        path: str | None = None,
        vocab: str | None = None,
        threads: int | None = None,
        batch_size: int | str = BATCH_SIZE,
        add_bos_token: bool = True,
        max_batch_size: int | None = None,  # noqa: ARG002 (of a search for the best size)
        device: str | None = None,  # noqa: ARG002 (the harness names one by itself)
    ) -> None:
        """`path`, `vocab` and `threads` as for `Model`; `batch_size` sessions go on together, which
        are 16 for "auto". With `add_bos_token` each text begins after token 0, which ends a
        document; otherwise only one without context does.

        Raises ValueError for a batch size that is no number, and as `Model` does.
        """
        super().__init__()
        size = BATCH_SIZE if str(batch_size).startswith("auto") else int(batch_size)
        if size < 1:
            raise ValueError(f"batch_size: found {batch_size}, expected at least 1")
        self.batch_size = size
        self._bos = add_bos_token
        self.model = Model(path, vocab=vocab, threads=threads)

    @property
    def eot_token_id(self) -> int:
        return END_OF_TEXT

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: ARG002 (there are none)
        **_options: object,
    ) -> list[int]:
        return self.model.tokenizer.encode(string)

    def _begun(self, context: list[int]) -> list[int]:
        return after_end(context) if self._bos or not context else context

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_options: object,
    ) -> list[tuple[float, bool]]:
        pairs = [(self._begun(context), text) for _, context, text in requests]
        with tqdm(total=len(pairs), desc="loglikelihood", disable=disable_tqdm) as bar:
            found = score(self.model, pairs, batch_size=self.batch_size, progress=bar.update)
        for (strings, _, _), result in zip(requests, found, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, result)
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p of each text as a whole, in one context however long it is."""
        pairs = [((END_OF_TEXT,), self.tok_encode(request.args[0])) for request in requests]
        with tqdm(total=len(pairs), desc="loglikelihood_rolling", disable=disable_tqdm) as bar:
            scores = score(self.model, pairs, batch_size=self.batch_size, progress=bar.update)
        found = [logprob for logprob, _ in scores]
        for request, logprob in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, greedily unless the task asks for samples."""
        found = [""] * len(requests)
        by_options: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            options = json.dumps(request.args[1], sort_keys=True)
            by_options.setdefault(options, []).append(number)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for numbers in by_options.values():
                stop, sampling = generation_options(requests[numbers[0]].args[1])
                for some in several(numbers, self.batch_size):
                    prompts = [self._begun(self.tok_encode(requests[i].args[0])) for i in some]
                    batch = self.model.batch(self.model.session() for _ in some)
                    for i, piece in batch.generate(prompts, stop=stop, **sampling):
                        found[some[i]] += piece
                    for i in some:
                        self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
                    bar.update(len(some))
        return found


def after_end(tokens: list[int]) -> list[int]:
    """A text as the model has read texts: after the token that ends a document."""
    return tokens if tokens[:1] == [END_OF_TEXT] else [END_OF_TEXT, *tokens]


def generation_options(given: Mapping[str, Any]) -> tuple[list[str], Sampling]:
    """The stop strings and the options of `Session.generate` for those of a task.

    Raises ValueError for one that is not known.
    """
    options = dict(given)
    until = options.pop("until", None) or []
    stop = [until] if isinstance(until, str) else list(until)
    most = [options.pop(n, None) for n in ("max_gen_toks", "max_new_tokens", "max_tokens")]
    sampling = Sampling(max_tokens=next((n for n in most if n), MAX_TOKENS), top_p=1.0)
    temperature = options.pop("temperature", None)
    do_sample = options.pop("do_sample", bool(temperature))
    for name in ("top_p", "top_k", "min_p", "seed"):
        if name in options:
            sampling[name] = options.pop(name)
    if do_sample:
        sampling["temperature"] = 1.0 if temperature is None else temperature
    else:
        sampling["temperature"] = 0.0
    if options:
        raise ValueError(f"generation_kwargs: found {', '.join(options)}, which are not known here")
    return stop, sampling


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
