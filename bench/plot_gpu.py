"""The picture of what bench/gpu.sh printed, once it stands in a file: python bench/plot_gpu.py RESULTS.md PICTURE.svg

Left: what one stream waits for a token against what all get, a point a number of streams. Right: the same under the roofs of
an H100 SXM, 3.35 TB/s over the bytes of a step: all weights once, and the keys and values of each stream.
"""
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from llama_8b import CONTEXT, HEAD_DIM, STEPS, Shapes
from plot_memory import table_with, tables

BANDWIDTH = 3.35e12  # NVIDIA's data sheet
NUMBERS = {"16": 2.0, "4": 4.5 / 8}  # bytes of a weight: codes in groups of 64 with a scale and a bias of 16 bits


def roof(bits, batches):
    """tokens/s, were memory the only limit."""
    s = Shapes(32, 1)
    attention = 2 * s.hidden * (s.heads + s.kv_heads) * HEAD_DIM
    weights = s.layers * (attention + 3 * s.hidden * s.inner) + s.vocabulary * s.hidden
    kept = s.layers * 2 * s.kv_heads * HEAD_DIM * 2 * (CONTEXT + STEPS / 2)  # in 16 bits
    return batches * BANDWIDTH / (weights * NUMBERS[bits] + batches * kept)


def speeds(rows):
    """{bits: {name: [(streams, tokens/s), ...]}}"""
    head, *rows = rows
    streams = {at: int(match[1]) for at, name in enumerate(head) if (match := re.fullmatch(r"decode at (\d+)", name))}
    found = {}
    for row in rows:
        if (match := re.fullmatch(r"(.+), (\d+) bits", row[0])) and "/" not in row[0]:
            points = [(n, float(row[at].split(" ")[0].replace(",", ""))) for at, n in streams.items() if row[at] != "–"]
            found.setdefault(match[2], {})[match[1]] = points
    return found


def main(source, target):
    plt.rcParams.update({"svg.hashsalt": "gpu", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    found = speeds(table_with(tables(Path(source).read_text()), "decode at 1"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5))
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    for bits, style in (("16", "o-"), ("4", "s--")):
        for name, points in found[bits].items():
            color = f"C{names.index(name)}"
            left.plot([1000 * n / speed for n, speed in points], [speed for _, speed in points], style, color=color, label=f"{name}, {bits} bits")
            right.loglog(*zip(*points), style, color=color)
        batches = np.array([n for n, _ in found[bits]["ours"]], float)
        right.loglog(batches, roof(bits, batches), "k" + style[1:], linewidth=1, label=f"memory's limit, {bits} bits")
    left.set(xlabel="ms a token of a stream", ylabel="tokens/s of all", title="Points: 1, 8, 32, 64 streams", xscale="log")
    left.set_ylim(bottom=0)
    right.set(xlabel="streams", ylabel="tokens/s of all", title="Roofline")
    right.set_xticks(batches, [str(int(n)) for n in batches], minor=False)
    for axes in (left, right):
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: plot_gpu.py RESULTS.md PICTURE.svg")
    main(*sys.argv[1:])
