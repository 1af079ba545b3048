"""The Markdown tables of what bench/gpu.sh measured: `python bench/gpu_table.py LOG`.

The log is what the programs printed, each after a line "== NAME BITS": bench_decode and decode_mlx_lm.py lines of a
kind, llama-batched-bench its own table. Each goes through the batches twice: the last time counts. A ratio is of
medians, ours to the best peer's.
"""
import re
import sys
from collections import defaultdict
from statistics import median

OURS = "ours"


class Log:
    def __init__(self, path):
        self.columns = []
        self.speeds = defaultdict(list)  # by bits, name and column, one a round
        self.steps = defaultdict(list)  # by batch: memories, milliseconds, times one without
        name = bits = None
        run = {}
        with open(path) as lines:
            for line in lines:
                if found := re.match(r"== (\S+) (\d+)", line):
                    self.close(bits, name, run)
                    (name, bits), run = found.groups(), {}
                elif found := re.match(r"(batch|prompt) +(\d+).*?: +(\d+) tokens/s", line):
                    kind = {"batch": "decode at {}", "prompt": "prompt of {}"}[found[1]].format(found[2])
                    run[kind] = int(found[3])
                elif found := re.match(r"memories +(\d+) batch +(\d+): +(\S+) ms a step.*?, (\S+) times", line):
                    self.steps[int(found[2])].append((int(found[1]), found[3], found[4]))
                elif found := re.match(r"\| *\d+ \| *\d+ \| *(\d+) \|(?: *\S+ \|){4} *(\S+) \|", line):
                    run[f"decode at {found[1]}"] = float(found[2])  # B and S_TG t/s
        self.close(bits, name, run)

    def close(self, bits, name, run):
        for column, speed in run.items():
            if column not in self.columns:
                self.columns.append(column)
            self.speeds[bits, name, column].append(speed)

    def ratio(self, bits, peers, column):
        own, *others = (self.speeds.get((bits, name, column)) for name in (OURS, *peers))
        best = max((median(speeds) for speeds in others if speeds), default=0)
        return f"{median(own) / best:.2f}" if own and best else "–"


def cell(speeds):
    return f"{median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})" if speeds else "–"


def row(*cells):
    print("| " + " | ".join(cells) + " |")


def main():
    log = Log(sys.argv[1])
    row("tokens/s, median (least to most)", *log.columns)
    row(*["---"] * (len(log.columns) + 1))
    for bits in dict.fromkeys(bits for bits, _, _ in log.speeds):
        names = sorted({name for of, name, _ in log.speeds if of == bits}, key=lambda name: (name != OURS, name))
        for name in names:
            row(f"{name}, {bits} bits", *(cell(log.speeds.get((bits, name, column))) for column in log.columns))
        if peers := [name for name in names if name != OURS]:
            row(f"{OURS} / best peer, {bits} bits", *(log.ratio(bits, peers, column) for column in log.columns))
    if log.steps:
        counts = [f"{count:,}" for count, _, _ in next(iter(log.steps.values()))]
        print()
        row("ms a step at 16 bits, by memories that all rows recall", *counts)
        row(*["---"] * (len(counts) + 1))
        for batch, cells in log.steps.items():
            row(f"batch of {batch}", *(f"{time} ({times}x)" for _, time, times in cells))


if __name__ == "__main__":
    main()
