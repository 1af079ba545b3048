"""The pictures of a run of `mlx_parallm memory-bench --result FILE`: python bench/plot_memory.py FILE docs/memory.svg

Left: exact answers by k and position, beside the same texts in the prompt. Middle: milliseconds to the first token after a long
text, in the prompt and as memories. Right: exact answers with other texts among the facts.
"""
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def tables(text):
    """Of the file: [[cells of a row, ...], ...] of each table, its head first."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines()]
        found.append([rows[0], *rows[2:]])  # the second is the line below the head
    return found


def table_with(found, column):
    return next((t for t in found if column in t[0]), None)


def exact_by_k(axes, rows):
    head, *rows = rows
    exact = head.index("exact")
    lines = {}
    for row in rows:
        if match := re.fullmatch(r"(\w+), k = (\w+)", row[0]):
            lines.setdefault(match[1], []).append((match[2], float(row[exact])))
        else:
            axes.axhline(float(row[exact]), color="k", linewidth=1, linestyle="--" if "prompt" in row[0] else ":", label=row[0])
    for name, points in lines.items():
        axes.plot([k for k, _ in points], [y for _, y in points], "o-", label=name)
    axes.set(xlabel="memories of each query, k", ylabel="exact answers", title="Facts", ylim=(-0.02, 1))
    axes.legend(fontsize=8)


def first_token(axes, rows):
    head, *rows = rows
    rows = [row for row in rows if "," in row[1]]
    for name in ("in the prompt", "zero", "contiguous"):
        at = head.index(name)
        axes.loglog([int(row[0]) for row in rows], [float(row[at].split(",")[0]) for row in rows], "o-", label=name)
    axes.set(xlabel="tokens of the text", ylabel="ms to the first token", title="The first token after a long text")
    axes.legend(fontsize=8)


def exact_among(axes, rows):
    head, *rows = rows
    for at, name in enumerate(head[2:], 2):
        points = [(int(row[0]), float(row[at].split(",")[0])) for row in rows if "," in row[at]]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=name)
    axes.set(xlabel="other texts", ylabel="exact answers", title="With other texts among the facts", ylim=(-0.02, 1))
    axes.legend(fontsize=8)


def main(source, target):
    plt.rcParams.update({"svg.hashsalt": "memory", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    found = tables(Path(source).read_text())
    parts = [(exact_by_k, "exact"), (first_token, "times faster"), (exact_among, "other texts")]
    parts = [(draw, rows) for draw, column in parts if (rows := table_with(found, column))]
    figure, axes = plt.subplots(1, len(parts), figsize=(5 * len(parts), 4), squeeze=False)
    for place, (draw, rows) in zip(axes[0], parts):
        draw(place, rows)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: plot_memory.py RESULTS.md PICTURE.svg")
    main(*sys.argv[1:])
