"""Llama-3-8B's shapes, for the peers' models (bench/decode.cpp has its own)."""
HEAD_DIM, ROPE_THETA, NORM_EPSILON = 128, 500000.0, 1e-5
CONTEXT, STEPS = 256, 48  # of what is measured


class Shapes:
    """With `narrower` above 1, a model so many times narrower: for a try on a CPU."""

    def __init__(self, layers, narrower):
        self.layers = layers
        self.hidden, self.inner, self.vocabulary, self.heads, self.kv_heads = (
            size // narrower for size in (4096, 14336, 128256, 32, 8))


def add_shapes(parser):
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--narrower", type=int, default=1, help="divide widths, heads and vocabulary by this (up to 8)")
