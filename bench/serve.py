"""Serving speed beside other servers, as a client sees it. `make bench` runs it and writes bench/results/serve.md and, with
bench/plot.py, docs/serve.svg.

    python bench/serve.py --model model.gguf [--servers ours,plain,mlx_lm,llama,llama_q4_0] [--concurrency 1,8,32] [--prompt 128]
                          [--output 64] [--long 2048] [--rounds 3] [--flags "..."] [--result FILE|-]

The peers: mlx_lm.server (the same codes and scales in an MLX folder); llama-server on the very file, and on the file
requantized to Q4_0, its fastest kind, which are other weights (bench/llama.sh builds it). This server is measured as it
is started by default and without speculative decoding: prompts of random words, which this uses, are answered with more
repetition than others, and so guessed more easily. No two servers are up at once: each round runs every server once, in
an order that turns from round to round, so that a machine that slows down slows all. A request is a streamed greedy
completion. No two prompts share a beginning, so that no server's prefix cache helps it.

Four tables. In the first this server and mlx-lm's answer the same small requests, as mlx-lm reads some 3 prompt tokens
a second on a CPU: --same-output tokens each, and prompts cut so that all requests at once have at most --same-prompt
tokens. The second is this server and llama-server at the full size, the third the same with prompts of --long tokens.
The fourth is this server and `mlx_parallm generate`, the same engine in one process without HTTP, streams and clients.
The clients have the same cores as the servers: they only note when bytes come, and read them when all have come.

TTFT: from sending the request to the first chunk with text. Inter-token: from there to the last chunk, for each further
token. tokens/s: the output tokens of all streams (usage's count) over the time from the first request to the last
chunk, reading the prompts included. A cell is the median over rounds, with the least and the greatest; TTFT and inter-token are the
round's median over requests. mlx-lm's server keeps a queue of 5 connections (Python's http.server), and the kernel resets some of 32
at once: such a request is sent again, its clock running on.
"""
import argparse
import asyncio
import json
import os
import platform
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import h11
import httpx2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
HOST = "127.0.0.1"
MLX_LM_MODEL = "default_model"
WORDS = "river stone lamp tiger seven green under paper quickly morning north glass winter bridge silver garden".split()
OURS, PLAIN, MLX_LM, LLAMA, LLAMA_Q4_0 = "ours", "plain", "mlx_lm", "llama", "llama_q4_0"
SERVED, ENGINE = "served", "engine"  # of the comparison of this server with its own engine
NAMES = {
    OURS: "mlx_parallm_serve",
    PLAIN: "mlx_parallm_serve, no guesses",
    MLX_LM: "mlx_lm.server",
    LLAMA: "llama-server",
    LLAMA_Q4_0: "llama-server, Q4_0",
}
OWN_NAMES = {SERVED: "mlx_parallm_serve, no guesses", ENGINE: "mlx_parallm generate, no guesses"}


@dataclass
class Round:
    """What one server did at one concurrency."""

    seconds: float
    tokens: int
    first: list = field(default_factory=list)  # seconds to the first text, a request
    between: list = field(default_factory=list)  # seconds a later token, a request

    @property
    def speed(self):
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Load:
    """Requests sent at once: how many, and their size in tokens."""

    concurrency: int
    prompt: int
    output: int


def prompt(rng, tokens):
    """A token a digit and a word; the number differs from prompt to prompt."""
    number = f"{rng.randrange(10**6):06}"
    return number + "".join(" " + word for word in rng.choices(WORDS, k=max(0, tokens - len(number))))


class Reply(asyncio.Protocol):
    """An answer's bytes, and when they came: little work, as the servers have the same cores. It is read afterwards."""

    def __init__(self, request):
        self.request, self.parts = request, []
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        transport.write(self.request)

    def data_received(self, data):
        self.parts.append((time.perf_counter(), data))

    def connection_lost(self, _):
        if not self.ended.done():  # cancelled
            self.ended.set_result(None)


class Request:
    """A streamed completion, on a connection of its own."""

    def __init__(self, model, text, output):
        fields = {
            "model": model, "prompt": text, "temperature": 0, "max_tokens": output,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if model != MLX_LM_MODEL:
            fields["ignore_eos"] = True  # mlx-lm has no such field
        body = json.dumps(fields).encode()
        headers = {"Host": HOST, "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        self.http = h11.Connection(h11.CLIENT)
        self.bytes = self.http.send(h11.Request(method="POST", target="/v1/completions", headers=list(headers.items())))
        self.bytes += self.http.send(h11.Data(body)) + self.http.send(h11.EndOfMessage())
        self.resets = model == MLX_LM_MODEL
        self.parts = []

    async def answer(self, port):
        while True:
            try:
                _, reply = await asyncio.get_running_loop().create_connection(lambda: Reply(self.bytes), HOST, port)
                await reply.ended
                self.parts = reply.parts
            except ConnectionError:
                pass
            if self.parts:
                return
            if not self.resets:
                raise SystemExit("[bench] a connection ended without an answer")
            await asyncio.sleep(0.05)

    def body(self):
        """The body's pieces, and when they came."""
        status = None
        for at, data in [*self.parts, (self.parts[-1][0], b"")]:
            self.http.receive_data(data)
            while (event := self.http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    if status != 200:
                        raise SystemExit(f"[bench] {status}: {bytes(event.data[:500]).decode()}")
                    yield at, bytes(event.data)
                elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                    return

    def read(self, begin, result):
        first, last, tokens, line = None, None, None, b""
        for at, data in self.body():
            *lines, line = (line + data).split(b"\n")
            for text in lines:
                if not text.startswith(b"data: {"):
                    continue
                chunk = json.loads(text[6:])
                if usage := chunk.get("usage"):
                    tokens = usage["completion_tokens"]
                if chunk["choices"] and chunk["choices"][0].get("text"):
                    first, last = first or at, at
        if tokens is None:
            raise SystemExit("[bench] a stream ended without usage")
        if first:
            result.first.append(first - begin)
        if first and tokens > 1:
            result.between.append((last - first) / (tokens - 1))
        result.tokens += tokens


async def measure(port, model, load, seed):
    rng = random.Random(seed)
    requests = [Request(model, prompt(rng, load.prompt), load.output) for _ in range(load.concurrency)]
    begin = time.perf_counter()
    await asyncio.gather(*(request.answer(port) for request in requests))
    result = Round(max(request.parts[-1][0] for request in requests) - begin, 0)
    for request in requests:
        request.read(begin, result)
    return result


def free_port():
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


class Server:
    """Started for one round, warmed up with one short request, and stopped."""

    def __init__(self, command, port, log):
        self.port = port
        self.log = log
        self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self):
        end = time.monotonic() + 180
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx2.get(f"http://{HOST}:{self.port}/health", timeout=5, trust_env=False).status_code == 200:
                    return self
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        self.process.kill()
        self.log.seek(0)
        raise SystemExit(f"[bench] a server did not start:\n{self.log.read()[-3000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Bench:
    def __init__(self, args):
        self.args = args
        self.rounds = {}  # (server, Load) -> [Round]
        self.full = [Load(c, args.prompt, args.output) for c in args.concurrency]
        self.long = [Load(c, args.long, args.output) for c in (1, 4) if args.long]
        self.same = []
        self.own = Load(args.engine, args.prompt, args.output) if args.engine else None
        self.folder = tempfile.TemporaryDirectory(prefix="parallm_bench_")
        if MLX_LM in args.servers:
            from gguf_to_mlx import convert

            self.converted = convert(args.model, Path(self.folder.name) / "model")
            cut = lambda c: max(8, min(args.prompt, args.same_prompt // c))
            self.same = [Load(c, cut(c), min(args.output, args.same_output)) for c in args.concurrency]
        if {LLAMA, LLAMA_Q4_0} & set(args.servers):
            built = subprocess.run([ROOT / "bench" / "llama.sh", sys.executable], check=True, stdout=subprocess.PIPE, text=True)
            self.llama = ROOT / built.stdout.splitlines()[-1]
        if LLAMA_Q4_0 in args.servers:
            self.q4_0 = Path(self.folder.name) / "q4_0.gguf"
            command = [self.llama / "llama-quantize", "--allow-requantize", args.model, self.q4_0, "Q4_0"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def command(self, server, port, loads):
        where = ["--host", HOST, "--port", str(port)]
        rows = max(load.concurrency for load in loads)
        if server in (OURS, PLAIN, SERVED):
            guesses = [] if server == OURS else ["--speculative", "none"]
            own = [*guesses, "--served-model-name", OURS, "--max-batch-size", str(rows)]
            return [self.args.binary, "--model-path", self.args.model, *where, *own, *shlex.split(self.args.flags)]
        if server == MLX_LM:
            return [sys.executable, "-m", "mlx_lm", "server", "--model", str(self.converted), *where, "--log-level", "ERROR"]
        size = rows * max(load.prompt + load.output + 64 for load in loads)
        own = ["--threads", str(os.cpu_count()), "--parallel", str(rows), "--ctx-size", str(size), "--no-webui"]
        return [str(self.llama / "llama-server"), "--model", str(self.q4_0 if server == LLAMA_Q4_0 else self.args.model), *where, *own]

    def loads(self, server):
        """Those of each start of a server."""
        if server in (MLX_LM, SERVED):
            return [self.same if server == MLX_LM else [self.own]]
        first = [*self.same, *self.full] if server == OURS else self.full
        return [first, self.long] if self.long else [first]

    def visit(self, server, number):
        """One server's part of a round."""
        for loads in self.loads(server):
            self.visit_with(loads, server, number)

    def visit_with(self, loads, server, number):
        port = free_port()
        model = MLX_LM_MODEL if server == MLX_LM else OURS
        with tempfile.TemporaryFile("w+") as log, Server(self.command(server, port, loads), port, log) as started:
            asyncio.run(measure(started.port, model, Load(1, 8, 2), seed="warm up"))
            for load in loads:
                seed = f"{number} {load}"  # the same to all servers, another for every load
                result = asyncio.run(measure(started.port, model, load, seed))
                self.rounds.setdefault((server, load), []).append(result)
                print(
                    f"round {number + 1}: {server}, {load.concurrency} at once, {load.prompt} + {load.output}:"
                    f" {result.speed:.1f} tokens/s, TTFT {median(result.first):.2f} s",
                    flush=True,
                )

    def generate(self, number):
        """The engine's part of a round: the requests that the server has."""
        rng = random.Random(f"{number} {self.own}")
        prompts = Path(self.folder.name) / "prompts"
        prompts.write_text("".join(prompt(rng, self.own.prompt) + "\n" for _ in range(self.own.concurrency)))
        command = [
            Path(self.args.binary).with_name("mlx_parallm"), "generate", "--model-path", self.args.model, "--file", prompts,
            "--max-tokens", self.own.output, "--ignore-eos", "--max-batch-size", self.own.concurrency, "--speculative", "none",
            *shlex.split(self.args.flags),
        ]  # fmt: skip
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        tokens, seconds = re.search(r"(\d+) tokens in ([\d.]+) s", done.stderr).groups()
        self.rounds.setdefault((ENGINE, self.own), []).append(Round(float(seconds), int(tokens)))
        print(f"round {number + 1}: {ENGINE}, {int(tokens) / float(seconds):.1f} tokens/s", flush=True)

    def run(self):
        for number in range(self.args.rounds):
            order = self.args.servers[:]
            if number % 2:
                order.reverse()
            for server in order:
                self.visit(server, number)
            if self.own:
                parts = [lambda: self.visit(SERVED, number), lambda: self.generate(number)]
                for part in parts if number % 2 else reversed(parts):
                    part()


def spread(values, digits, scale=1):
    values = [v * scale for v in values]
    low, mid, high = (f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))
    return mid if len(values) == 1 else f"{mid} ({low}–{high})"


def machine():
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((l.split(":")[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}"


def peer_versions(servers):
    out = [f"mlx-lm {version('mlx-lm')}"] if MLX_LM in servers else []
    if {LLAMA, LLAMA_Q4_0} & set(servers):
        pinned = next(l for l in (ROOT / "tools" / "versions.sh").read_text().splitlines() if l.startswith("LLAMA_CPP_PYTHON"))
        out.append(f"llama.cpp of llama-cpp-python {pinned.split('=')[1].split()[0]}")
    return ", ".join(out) or "no peer"


def row(bench, server, load):
    rounds = bench.rounds[server, load]
    between = [median(r.between) for r in rounds if r.between]

    def times(mine):
        of = bench.rounds.get((mine, load))
        if not of or server in (OURS, PLAIN):
            return ""
        return f"{median(r.speed for r in of) / median(r.speed for r in rounds):.2f}"

    cells = [
        load.concurrency, f"{load.prompt} + {load.output}", NAMES[server], len(rounds),
        spread([median(r.first) for r in rounds], 2), spread(between, 1, 1000) if between else "",
        spread([r.speed for r in rounds], 1), times(OURS), times(PLAIN),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def table(bench, servers, loads):
    columns = ["at once", "tokens in + out", "server", "rounds", "TTFT, s", "inter-token, ms", "tokens/s", "ours / it", "no guesses / it"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + [row(bench, server, load) for load in loads for server in servers]


def report(bench):
    args = bench.args
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    lines = [
        "# Serving",
        "",
        f"{date.today()}, commit {commit or 'unknown'}. {machine()}; load average at the end {os.getloadavg()[0]:.1f}.",
        f"{Path(args.model).name}. mlx {version('mlx')}, {peer_versions(args.servers)}, Python {platform.python_version()}.",
        "All requests of a row are sent at once. Median over rounds (least–greatest); tokens/s includes reading the prompts.",
        "Guesses are speculative decoding, on by default; answers to these prompts, random words, repeat themselves and are guessed easily.",
        "Made with `make bench`; `bench/serve.py` says how.",
    ]
    if bench.same:
        lines += [
            "",
            "## Small requests, beside mlx-lm's server",
            "",
            "It reads and makes only a few tokens a second on a CPU.",
            "",
            *table(bench, [s for s in (OURS, MLX_LM) if s in args.servers], bench.same),
        ]
    others = [s for s in args.servers if s != MLX_LM]
    if others:
        lines += ["", "## Full size", "", *table(bench, others, bench.full)]
        if bench.long:
            lines += ["", "## Long prompts", "", *table(bench, others, bench.long)]
    if bench.own:
        served, engine = ([r.speed for r in bench.rounds[kind, bench.own]] for kind in (SERVED, ENGINE))
        lines += [
            "",
            "## The server beside its own engine",
            "",
            f"{bench.own.concurrency} at once, {bench.own.prompt} + {bench.own.output} tokens; the clients run on the same cores.",
            "",
            "| | tokens/s | served / engine |",
            "| --- | --- | --- |",
            f"| {OWN_NAMES[SERVED]} | {spread(served, 1)} | {median(served) / median(engine):.3f} |",
            f"| {OWN_NAMES[ENGINE]} | {spread(engine, 1)} | |",
        ]
    return "\n".join(lines) + "\n"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--binary", default=str(ROOT / "build" / "bin" / "mlx_parallm_serve"))
    parser.add_argument("--servers", type=lambda text: text.split(","), default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens, about")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--long", type=int, default=2048, help="tokens of long prompts; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--same-prompt", type=int, default=256, help="side by side: prompt tokens of all requests at once")
    parser.add_argument("--same-output", type=int, default=8, help="side by side: tokens of a request")
    parser.add_argument("--engine", type=int, default=64, help="streams of the comparison with the engine; 0: none")
    parser.add_argument("--flags", default="", help="more flags of our server, as one argument")
    parser.add_argument("--plot", default=str(ROOT / "docs" / "serve.svg"), help="the picture, with --result a file")
    parser.add_argument("--result", default=str(ROOT / "bench" / "results" / "serve.md"), help="a file, or - for the screen")
    args = parser.parse_args()
    if unknown := set(args.servers) - set(NAMES):
        parser.error(f"--servers: {', '.join(unknown)} is none of {', '.join(NAMES)}")
    return args


if __name__ == "__main__":
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception: the running server is stopped too
    bench = Bench(args)
    bench.run()
    text = report(bench)
    if args.result != "-":
        Path(args.result).parent.mkdir(parents=True, exist_ok=True)
        Path(args.result).write_text(text)
        from plot import draw

        draw(bench, [s for s in args.servers if s != MLX_LM], NAMES, OURS, args.plot)
    print("\n" + text)
