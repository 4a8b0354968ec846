# SPDX-License-Identifier: Apache-2.0
"""Load for the server, beside llama-server where its program is named, on the same file.

    python bench/serve.py MODEL.gguf --threads 2
    python bench/serve.py MODEL.gguf --llama-server PATH/llama-server --json runs.json

Both servers are started once, and take turns at each case: a server without requests costs
nothing. The clients live in this process, and read streams by hand to cost little. Prompts are
token ids, no two alike; answers have a fixed length; tokens are counted by `usage`.

    clients N    N clients, each of which sends its next request when its last answer has ended
    long         four speakers, and then one prompt of 2,000 tokens beside them
    system       a system text of some 2,000 tokens before each of nine questions of a chat
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
LEVELS = (1, 2, 4, 8, 16, 32)
PROMPT, LONG = 32, 2000  # tokens
WORDS = ("house", "river", "green", "seven", "music", "stone", "bread", "winter")
IDS = (1000, 20000)  # of whole words in the World vocabulary


@dataclass
class Server:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    extra: dict[str, Any]
    """Fields that say in its words that nothing is cached."""

    @property
    def cpu(self) -> float:
        """Seconds that all of its threads have worked."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def peak_mb(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1000


@dataclass
class Answer:
    """What a client saw: moments in seconds."""

    began: float
    times: list[float] = field(default_factory=list)
    """Of each piece of text."""
    tokens: int = 0
    cached: int = 0

    @property
    def first(self) -> float:
        return self.times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@dataclass
class Result:
    """A case with one server. Times are milliseconds."""

    server: str
    case: str
    tokens_per_second: float
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    unfair: float
    """How far the client with the most tokens per second is from the one with the fewest."""
    cpu_ms: float
    """That a token took, prompts included: it says more than wall time on a busy machine."""
    peak_mb: float


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def ours(model: Path, threads: int) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "rwkv_edge", "serve", str(model), "-t", str(threads)]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return Server("rwkv-edge", port, process, {"cache": False})


def theirs(program: Path, model: Path, threads: int, slots: int) -> Server:
    port = free_port()
    command = [str(program), "-m", str(model), "-t", str(threads), "-np", str(slots)]
    command += ["-c", str(slots * 4096), "--port", str(port), "--no-jinja"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Server("llama-server", port, process, {"cache_prompt": False})


async def wait_for(server: Server) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            found = await reader.read()
            writer.close()
            if b" 200 " in found[:20]:
                return
        except OSError:
            pass
        if time.monotonic() > until or server.process.poll() is not None:
            raise RuntimeError(f"{server.name} did not start")
        await asyncio.sleep(0.1)


async def ask(
    server: Server,
    prompt: Sequence[int] | Sequence[dict[str, str]],
    tokens: int,
    *,
    cache: bool = False,
) -> Answer:
    """`prompt` is token ids, or the messages of a chat."""
    chat = isinstance(prompt[0], dict)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body = json.dumps(
        {
            "messages" if chat else "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if cache else server.extra),
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    answer = Answer(time.perf_counter())
    writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{server.name}: {status!r} {await reader.read()!r}")
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        found = json.loads(line[6:])
        if any(text_of(choice) for choice in found.get("choices", ())):
            answer.times.append(time.perf_counter())
        if usage := found.get("usage"):
            answer.tokens = usage["completion_tokens"]
            answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    writer.close()
    if not answer.times:
        raise RuntimeError(f"{server.name}: an answer without text")
    return answer


def text_of(choice: dict[str, Any]) -> str | None:
    text: str | None = choice.get("text") or choice.get("delta", {}).get("content")
    return text


def prompt_of(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(*IDS) for _ in range(tokens)]


async def closed_loop(
    server: Server, clients: int, requests: int, tokens: int, seed: int
) -> list[list[Answer]]:
    """The answers of each client."""

    async def client(number: int) -> list[Answer]:
        rng = random.Random(f"{seed} {number}")
        return [await ask(server, prompt_of(rng, PROMPT), tokens) for _ in range(requests)]

    return list(await asyncio.gather(*(client(i) for i in range(clients))))


async def beside_a_long_prompt(server: Server, tokens: int, seed: int) -> list[list[Answer]]:
    """The long prompt's answer comes last."""
    rng = random.Random(seed)
    speakers = [asyncio.create_task(ask(server, prompt_of(rng, PROMPT), tokens)) for _ in range(4)]
    await asyncio.sleep(1.0)
    long = await ask(server, prompt_of(rng, LONG), 8)
    return [[await speaker] for speaker in speakers] + [[long]]


async def with_a_system_text(server: Server, tokens: int, seed: int) -> list[list[Answer]]:
    """The first one's answer comes first; the others find what it has read."""
    rng = random.Random(seed)
    system = " ".join(rng.choice(WORDS) for _ in range(LONG))

    async def question(number: int) -> Answer:
        asked = f"Question {number}: what is {rng.choice(WORDS)}?"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        return await ask(server, messages, tokens, cache=True)

    return [[await question(0)], [await question(i) for i in range(1, 9)]]


def result_of(server: Server, case: str, answers: list[list[Answer]], cpu: float = 0) -> Result:
    """`cpu` is seconds that the server has worked."""
    flat = [answer for each in answers for answer in each]
    seconds = max(a.times[-1] for a in flat) - min(a.began for a in flat)
    gaps = [gap for answer in flat for gap in answer.gaps]
    rates = [sum(a.tokens for a in each) / (each[-1].times[-1] - each[0].began) for each in answers]
    firsts = [answer.first for answer in flat]
    return Result(
        server=server.name,
        case=case,
        tokens_per_second=sum(a.tokens for a in flat) / seconds,
        first_p50=1000 * quantile(firsts, 0.5),
        first_p99=1000 * quantile(firsts, 0.99),
        gap_p50=1000 * quantile(gaps, 0.5),
        gap_p99=1000 * quantile(gaps, 0.99),
        unfair=max(rates) / min(rates) - 1,
        cpu_ms=1000 * cpu / sum(a.tokens for a in flat),
        peak_mb=server.peak_mb,
    )


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


async def measure(servers: Sequence[Server], options: argparse.Namespace) -> list[Result]:
    for server in servers:
        await wait_for(server)
        await closed_loop(server, 1, 1, 8, seed=0)
    found = []

    def note(result: Result) -> None:
        found.append(result)
        print(row(result), flush=True)

    print(HEAD, flush=True)
    for clients in options.clients if "clients" in options.cases else ():
        for seed in range(options.rounds):
            for server in servers:
                requests = max(1, options.requests // clients)
                cpu = server.cpu
                answers = await closed_loop(server, clients, requests, options.tokens, seed + 1)
                note(result_of(server, f"clients {clients}", answers, server.cpu - cpu))
    if "long" in options.cases:
        for server in servers:
            *speakers, long = await beside_a_long_prompt(server, options.tokens * 2, seed=99)
            note(result_of(server, "long: the speakers", speakers))
            note(result_of(server, "long: the prompt", [long]))
    if "system" in options.cases:
        for server in servers:
            first, others = await with_a_system_text(server, options.tokens // 4, seed=98)
            note(result_of(server, "system: first", [first]))
            note(result_of(server, "system: cached", [others]))
            print(f"cached tokens: {[answer.cached for answer in others]}")
    return found


HEAD = (
    "| server | case | tokens/s | first token p50, p99 ms | between p50, p99 ms | unfair % "
    "| CPU ms/token | MB |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


def row(r: Result) -> str:
    return (
        f"| {r.server} | {r.case} | {r.tokens_per_second:.1f} | {r.first_p50:.0f}, "
        f"{r.first_p99:.0f} | {r.gap_p50:.1f}, {r.gap_p99:.1f} | {100 * r.unfair:.0f} | "
        f"{r.cpu_ms:.1f} | {r.peak_mb:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slots", type=int, default=16, help="of llama-server")
    parser.add_argument("--cases", default="clients,long,system")
    parser.add_argument("--clients", type=lambda x: [int(n) for n in x.split(",")], default=LEVELS)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--requests", type=int, default=32, help="of a case, shared by its clients")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    servers = [ours(options.model, options.threads)]
    if options.llama_server is not None:
        peer = theirs(options.llama_server, options.model, options.threads, options.slots)
        servers.append(peer)
    try:
        found = asyncio.run(measure(servers, options))
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in found], indent=1))


if __name__ == "__main__":
    main()
