"""The picture of a run of bench/serve.py: docs/serve.svg.

Left: what one client sees against what all get, a point a number of requests at once. Right: output tokens a second while
decoding (streams over the time between a stream's tokens) under two roofs: the machine's measured memory bandwidth over the
model's bytes, as a step reads all weights once, whatever the number of streams; and our own prompt reading, where
arithmetic is the limit.
"""
import time
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np


def bandwidth():
    """Bytes a second that all cores read together from memory, the best of a few tries."""
    from concurrent.futures import ThreadPoolExecutor
    from os import cpu_count

    parts = [np.ones(1 << 25) for _ in range(cpu_count())]  # 256 MB each: larger than any cache
    best = 0.0
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, sum(p.nbytes for p in parts) / (time.perf_counter() - begin))
    return best


def draw(bench, servers, names, ours, path):
    plt.rcParams.update({"svg.hashsalt": "serve", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for server in servers:
        loads = [load for load in bench.full if (server, load) in bench.rounds]
        rounds = [bench.rounds[server, load] for load in loads]
        speed = [median(r.speed for r in some) for some in rounds]
        between = [median(median(r.between) for r in some) for some in rounds]
        left.plot([1000 * b for b in between], speed, "o-", label=names[server])
        for load, x, y in zip(loads, between, speed):
            left.annotate(load.concurrency, (1000 * x, y), textcoords="offset points", xytext=(4, 4))
        right.loglog([load.concurrency for load in loads], [load.concurrency / b for load, b in zip(loads, between)], "o-", label=names[server])
    left.set(xlabel="ms between a stream's tokens", ylabel="output tokens/s, reading prompts included", title="Points: requests at once")
    left.set_ylim(bottom=0)
    left.set_xlim(left=0)
    rate = bandwidth()
    at_once = np.array([load.concurrency for load in bench.full], float)
    roof = at_once * rate / Path(bench.args.model).stat().st_size
    right.loglog(at_once, roof, "k--", linewidth=1, label=f"weights once a step at {rate / 1e9:.0f} GB/s")
    alone = bench.full[0]
    if (ours, alone) in bench.rounds:
        prefill = alone.prompt * alone.concurrency / median(median(r.first) for r in bench.rounds[ours, alone])
        right.axhline(prefill, color="k", linestyle=":", linewidth=1, label="our prompt reading")
    right.set(xlabel="streams", ylabel="output tokens/s while decoding", title="Roofline")
    right.set_xticks(at_once, [str(int(n)) for n in at_once], minor=False)
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
