"""Finds random weights for a golden model whose choices, of experts or of positions, are no near ties.

usage: golden_salt.py name[:from] ...    the first "salt" that holds, for each (see golden.py), or the first of those from
                                         a number: where the tests, in which MLX sums up in 16 bits on a CPU, don't hold
       golden_salt.py --check [name ...] whether the present salts hold (without names: all); prints those that don't

A choice that falls the other way moves the logits by much more than rounding does, and which near ties do so depends on the
order of sums: a GPU's differ from a CPU's. So each model, and its 4-bit twin, is run with 16-bit weights and float32 sums
whose results are all rounded up or down at random: twice as far off as rounding to nearest is at most. 200 such runs have
to stay within the bounds that tests/tensor/golden_test.cpp sets for our kernels.
"""

import copy
import itertools
import json
import sys

import golden
import mlx.core as mx
import mlx.nn as nn
import numpy as np

RUNS, AT_ONCE = 200, 50
KINDS = [(mx.bfloat16, 16, 0.1), (mx.float16, 13, 0.015)]  # type, bits of a float32 that it drops, bound


class Rounding:
    """Rounds results to `dropped` bits less, up or down at random, in proportion."""

    dropped = 0


def rounded(x):
    if not Rounding.dropped or not isinstance(x, mx.array) or x.dtype != mx.float32:
        return x
    below = 1 << Rounding.dropped
    words = x.view(mx.uint32) + mx.random.randint(0, below, x.shape, mx.uint32)
    return (words & (2**32 - below)).view(mx.float32)


def rounding(function):
    def call(*args, **kwargs):
        y = function(*args, **kwargs)
        return tuple(rounded(x) for x in y) if isinstance(y, tuple) else rounded(y)

    call.rounds = True
    return call


def round_results(model):
    """Of every module; once for each class."""
    for _, module in model.named_modules():
        kind = type(module)
        if "__call__" in vars(kind) and not hasattr(kind.__call__, "rounds"):
            kind.__call__ = rounding(kind.__call__)


def jumps(model, config, how, seed):
    """How far the first prompt's logits move, of their bounds: the greatest of each 50 runs."""
    rng = np.random.default_rng(seed)
    length = how.get("lengths", golden.LENGTHS)[0]
    prompt, after = (rng.integers(0, golden.vocabulary(config), n) for n in (length, 4))
    golden.slide(model, how)
    round_results(model)
    golden.cast(model, mx.float32)
    stored = model.parameters()
    still = golden.answer(model, prompt, after, how)
    mx.random.seed(seed)
    for dtype, dropped, bound in KINDS:
        model.update(stored)
        golden.cast(model, dtype)
        golden.cast(model, mx.float32)
        for _ in range(RUNS // AT_ONCE):
            Rounding.dropped = dropped
            rows = golden.answer(model, prompt, after, how, AT_ONCE)
            Rounding.dropped = 0
            yield (mx.abs(rows - still).max() / mx.abs(still).max()).item() / bound


def farthest(name, config, salt, most=1e9):
    """Of the model and its 4-bit twin; what is beyond `most` ends the search."""
    config = copy.deepcopy(config)
    how = config.pop("golden", {})
    far = {}
    for kind, model, _, stored, seed in golden.models(name, config, how, salt):
        for x in jumps(model, config, stored, seed):
            far[kind] = max(far.get(kind, 0), x)
            if x > most:
                return far
    return far


def main(check, names):
    for name in names:
        name, _, first = name.partition(":")
        config = json.loads((golden.CONFIGS / f"{name}.json").read_text())
        if check:
            salt = config.get("golden", {}).get("salt", "")
            for kind, far in farthest(name, config, salt).items():
                if far > 1:
                    print(f"{kind}: {far:.2f} of its bound", flush=True)
            continue
        for salt in itertools.count(int(first)) if first else itertools.chain([""], itertools.count(1)):
            far = farthest(name, config, salt, 1)
            if max(far.values()) <= 1:
                print(f"{name}: {salt or 'none is needed'}", flush=True)
                break


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    mx.disable_compile()  # what is compiled would round the same way each time
    mx.fast.rope, mx.fast.scaled_dot_product_attention, mx.array.__matmul__ = (
        rounding(f) for f in (mx.fast.rope, mx.fast.scaled_dot_product_attention, mx.array.__matmul__)
    )
    only_check = sys.argv[1] == "--check"
    wanted = sys.argv[2:] if only_check else sys.argv[1:]
    main(only_check, wanted or sorted(path.stem for path in golden.CONFIGS.glob("*.json")))
