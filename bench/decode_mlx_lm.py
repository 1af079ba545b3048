"""mlx-lm's speed at what bench/decode.cpp measures: a model of Llama-3-8B's shapes with random weights, decoding.

    python bench/decode_mlx_lm.py BITS BATCH...     BITS: 16 (bfloat16), or 8 or 4 in groups of 64

It is mlx-lm's own model and cache, stepped as its generate_step does: greedy, one step ahead. To its advantage the step
leaves out what its generators add (log-probabilities, lists of tokens), and all rows share a KVCache, which needs no
mask; its server's BatchKVCache, for rows of unequal lengths, does. Only mlx and five files of mlx_lm/models have to be
there, as bench/gpu.sh packs them: mlx_lm itself imports transformers and more.
"""
import argparse
import time

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.llama import Model, ModelArgs

from llama_8b import CONTEXT, HEAD_DIM, NORM_EPSILON, ROPE_THETA, STEPS, Shapes, add_shapes

WARM_UP = 8


def make(bits, shapes):
    model = Model(ModelArgs(
        model_type="llama", hidden_size=shapes.hidden, num_hidden_layers=shapes.layers, intermediate_size=shapes.inner,
        num_attention_heads=shapes.heads, num_key_value_heads=shapes.kv_heads, head_dim=HEAD_DIM,
        rms_norm_eps=NORM_EPSILON, vocab_size=shapes.vocabulary, rope_theta=ROPE_THETA, tie_word_embeddings=False))
    weights = []
    for name, weight in tree_flatten(model.parameters()):
        if weight.ndim == 1:
            weights.append((name, mx.ones(weight.shape, mx.bfloat16)))
        else:
            weights.append((name, mx.random.normal(weight.shape, mx.bfloat16) * mx.array(0.02, mx.bfloat16)))
    model.update(tree_unflatten(weights))
    if bits < 16:
        nn.quantize(model, group_size=64, bits=bits)
    del weights  # so that each in 16 bits goes as soon as it is quantized
    mx.eval(model.parameters())
    return model


def measure(model, batch, shapes):
    cache = model.make_cache()
    for layer in cache:
        keys, values = (mx.random.normal((batch, shapes.kv_heads, CONTEXT, HEAD_DIM), mx.bfloat16) for _ in range(2))
        layer.update_and_fetch(keys, values)
        mx.eval(layer.state)
    ids = mx.zeros((batch,), mx.uint32)
    for step in range(-WARM_UP, STEPS):
        if step == 0:
            mx.eval(ids)
            start = time.perf_counter()
        following = mx.argmax(model(ids[:, None], cache=cache)[:, -1, :], axis=-1)
        mx.async_eval(following)
        mx.eval(ids)
        ids = following
    mx.eval(ids)
    seconds = time.perf_counter() - start
    print(f"batch {batch:3} context {CONTEXT:5}: {batch * STEPS / seconds:8.0f} tokens/s, "
          f"{seconds / STEPS * 1e3:6.2f} ms a step", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bits", type=int)
    parser.add_argument("batches", type=int, nargs="+")
    add_shapes(parser)
    options = parser.parse_args()
    shapes = Shapes(options.layers, options.narrower)
    model = make(options.bits, shapes)
    for batch in options.batches:
        measure(model, batch, shapes)


if __name__ == "__main__":
    main()
