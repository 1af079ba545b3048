"""Writes a GGUF file of Llama-3-8B's shapes with random weights, for llama.cpp's llama-batched-bench.

    python bench/random_gguf.py FILE f16|q4_0

One random block of data is repeated through all matrices: the file has 16 GB, and nothing in it is computed. All
matrices are of the one kind, embeddings and output too, as in bench/decode.cpp. There are no words ("no_vocab"), which
llama-batched-bench doesn't need. Written without the gguf package, which wants numpy and more.
"""
import argparse
import math
import os
import random
import struct
from pathlib import Path

from llama_8b import HEAD_DIM, NORM_EPSILON, ROPE_THETA, Shapes, add_shapes

# Name: ggml's number, general.file_type, values and bytes of a block.
KINDS = {"f32": (0, 0, 1, 4), "f16": (1, 1, 1, 2), "q4_0": (2, 2, 32, 18)}
ALIGNMENT = 32
UINT32, FLOAT32, STRING = 4, 6, 8  # kinds of metadata


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def field(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    kind, letter = (UINT32, "I") if isinstance(value, int) else (FLOAT32, "f")
    return text(key) + struct.pack(f"<I{letter}", kind, value)


def tensors(shapes, kind):
    """Name, shape (inputs first) and kind."""
    queries, keys = shapes.heads * HEAD_DIM, shapes.kv_heads * HEAD_DIM
    yield "token_embd", (shapes.hidden, shapes.vocabulary), kind
    yield "output", (shapes.hidden, shapes.vocabulary), kind
    yield "output_norm", (shapes.hidden,), "f32"
    for i in range(shapes.layers):
        for name, shape in [
            ("attn_q", (shapes.hidden, queries)), ("attn_k", (shapes.hidden, keys)), ("attn_v", (shapes.hidden, keys)),
            ("attn_output", (queries, shapes.hidden)), ("ffn_gate", (shapes.hidden, shapes.inner)),
            ("ffn_up", (shapes.hidden, shapes.inner)), ("ffn_down", (shapes.inner, shapes.hidden)),
        ]:
            yield f"blk.{i}.{name}", shape, kind
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}", (shapes.hidden,), "f32"


def size(shape, kind):
    _, _, width, length = KINDS[kind]
    return math.prod(shape) // width * length


def random_data(kind):
    """Up to 0.5 MB: weights of about 0.02, and norms of 1."""
    if kind == "f32":
        return struct.pack("<f", 1.0) * (1 << 16)
    if kind == "f16":
        return b"".join(struct.pack("<e", random.gauss(0, 0.02)) for _ in range(1 << 18))
    return b"".join(struct.pack("<e", random.uniform(0.003, 0.006)) + os.urandom(16) for _ in range(1 << 14))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("kind", choices=[kind for kind in KINDS if kind != "f32"])
    add_shapes(parser)
    options = parser.parse_args()
    shapes = Shapes(options.layers, options.narrower)
    fields = {
        "general.architecture": "llama", "general.file_type": KINDS[options.kind][1], "llama.context_length": 8192,
        "llama.block_count": shapes.layers, "llama.embedding_length": shapes.hidden,
        "llama.feed_forward_length": shapes.inner,
        "llama.attention.head_count": shapes.heads, "llama.attention.head_count_kv": shapes.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": NORM_EPSILON, "llama.rope.dimension_count": HEAD_DIM,
        "llama.rope.freq_base": ROPE_THETA, "llama.vocab_size": shapes.vocabulary, "tokenizer.ggml.model": "no_vocab",
    }
    all_tensors = list(tensors(shapes, options.kind))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(fields))
    header += b"".join(field(key, value) for key, value in fields.items())
    at = 0
    for name, shape, kind in all_tensors:
        header += text(name + ".weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, KINDS[kind][0], at)
        at += -(-size(shape, kind) // ALIGNMENT) * ALIGNMENT
    data = {kind: random_data(kind) for kind in ("f32", options.kind)}
    part = options.file.with_name(options.file.name + ".part")  # so that a broken-off run leaves no file to be taken
    with part.open("wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for _, shape, kind in all_tensors:
            left = size(shape, kind)
            padding = -left % ALIGNMENT
            while left > 0:
                left -= file.write(memoryview(data[kind])[:left])
            file.write(bytes(padding))
    part.rename(options.file)


if __name__ == "__main__":
    main()
