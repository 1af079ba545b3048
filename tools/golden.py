"""Writes tests/golden/<name>/: tiny random models with the logits that a reference gives for them.

usage: golden.py [name ...]      (needs mlx-lm 0.32.2; without names: all of them)

Each folder is a checkpoint (config.json and safetensors, or model.gguf) and reference.safetensors:
  prompt.<i>  int32 [L]      three prompts of different lengths
  next.<i>    int32 [4]      tokens fed one at a time after the prompt
  logits.<i>  float32 [5,V]  after the prompt, then after each of `next`
The reference is mlx-lm's own model on the stored weights cast to float32, one prompt at a time. mlx-lm's Llama can't do
"dynamic" RoPE at a fixed prompt length, so there the frequencies follow transformers' modeling_rope_utils.py.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden"
BASE = dict(
    model_type="llama",
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=96,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
DYNAMIC = dict(rope_type="dynamic", factor=2.0)
LENGTHS = [23, 5, 14]

# name: (config, how it is stored)
MODELS = {
    "mha": (dict(num_key_value_heads=4), dict(dtype="float32")),
    "gqa_untied": (dict(tie_word_embeddings=False, eos_token_id=[2, 5]), {}),
    "biases": (dict(attention_bias=True, mlp_bias=True), {}),
    "head_dim": (dict(head_dim=32, num_key_value_heads=1), dict(dtype="bfloat16")),
    "rope_llama3": (dict(rope_scaling=LLAMA3), {}),
    "rope_linear": (dict(rope_scaling=dict(type="linear", factor=2.0)), {}),
    "rope_yarn": (dict(rope_scaling=YARN), {}),
    "rope_dynamic": (
        dict(rope_scaling=DYNAMIC, max_position_embeddings=10),
        dict(dynamic=True),
    ),
    "window": (
        dict(
            model_type="mistral",
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=6,
        ),
        {},
    ),
    "quantized_4": (dict(tie_word_embeddings=False), dict(bits=4, group_size=32)),
    "quantized_8": (dict(intermediate_size=128), dict(bits=8, group_size=64)),
    "quantized_mixed": (
        dict(attention_bias=True),
        dict(
            bits=4,
            group_size=32,
            layers={
                "model.embed_tokens": dict(bits=8, group_size=32),
                "model.layers.1.mlp.down_proj": False,
            },
        ),
    ),
    "sharded": ({}, dict(shards=2)),
    "gguf": (dict(tie_word_embeddings=False), dict(gguf=True)),
    "quantized_mxfp4": ({}, dict(bits=4, group_size=32, mode="mxfp4")),
    "quantized_nvfp4": (dict(tie_word_embeddings=False), dict(bits=4, group_size=16, mode="nvfp4")),
    "quantized_mxfp8": (
        dict(attention_bias=True),
        # An override without a mode is affine.
        dict(bits=8, group_size=32, mode="mxfp8", layers={"model.layers.0.mlp.up_proj": dict(bits=6, group_size=64)}),
    ),
    "quantized_bits": (
        {},
        dict(
            bits=2,
            group_size=32,
            layers={
                "model.embed_tokens": dict(bits=6, group_size=64),
                "model.layers.0.self_attn.q_proj": dict(bits=3, group_size=32),
                "model.layers.0.self_attn.v_proj": dict(bits=5, group_size=64),
                "model.layers.1.mlp.gate_proj": dict(bits=6, group_size=32),
            },
            unnamed=["model.layers.0.self_attn.v_proj"],  # a loader must infer it from the tensors
        ),
    ),
    "awq": (dict(tie_word_embeddings=False), dict(awq=True, group_size=32)),
}


def random_model(config, seed):
    """Weights large enough that attention and RoPE change the logits a lot."""
    rng = np.random.default_rng(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))

    def draw(path, x):
        if path.endswith("norm.weight"):
            return mx.array(1 + 0.2 * rng.standard_normal(x.shape).astype(np.float32))
        scale = 0.3 if path.endswith("bias") else 1.6 / np.sqrt(x.shape[-1])
        if "embed_tokens" in path:
            scale = 1.0
        return mx.array(scale * rng.standard_normal(x.shape).astype(np.float32))

    weights = [(k, draw(k, v)) for k, v in tree_flatten(model.parameters())]
    model.load_weights(weights)
    return model


def cast(model, dtype):
    def to(x):
        return x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x

    model.update(tree_map(to, model.parameters()))


def quantize(model, config, how):
    layers = how.get("layers", {})

    def kind(path, module):
        if not hasattr(module, "to_quantized"):
            return False
        return layers.get(path, True)

    mode = how.get("mode", "affine")
    nn.quantize(model, how["group_size"], how["bits"], mode=mode, class_predicate=kind)
    named = {k: v for k, v in layers.items() if k not in how.get("unnamed", [])}
    config["quantization"] = dict(group_size=how["group_size"], bits=how["bits"], **named)
    if mode != "affine":
        config["quantization"]["mode"] = mode


class FixedRope(nn.Module):
    """Rotation by given frequencies, at any offset."""

    def __init__(self, inv_freq):
        super().__init__()
        self._freqs = mx.array((1 / inv_freq).astype(np.float32))

    def __call__(self, x, offset=0):
        return mx.fast.rope(
            x,
            x.shape[-1],
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._freqs,
        )


def dynamic_frequencies(config, length):
    dim = config["hidden_size"] // config["num_attention_heads"]
    factor = config["rope_scaling"]["factor"]
    longest = config["max_position_embeddings"]
    length = max(length, longest)
    base = config["rope_theta"] * (
        (factor * length / longest) - (factor - 1)
    ) ** (dim / (dim - 2))
    return 1.0 / base ** (np.arange(0, dim, 2) / dim)


def reference(model, config, how, seed):
    rng = np.random.default_rng(seed)
    out = {}
    for i, length in enumerate(LENGTHS):
        prompt = rng.integers(0, config["vocab_size"], length)
        after = rng.integers(0, config["vocab_size"], 4)
        if how.get("dynamic"):
            for layer in model.layers:
                layer.self_attn.rope = FixedRope(dynamic_frequencies(config, length))
        cache = make_prompt_cache(model)
        rows = [model(mx.array(prompt)[None], cache=cache)[0, -1]]
        for token in after:
            rows.append(model(mx.array([[int(token)]]), cache=cache)[0, -1])
        out[f"prompt.{i}"] = mx.array(prompt.astype(np.int32))
        out[f"next.{i}"] = mx.array(after.astype(np.int32))
        out[f"logits.{i}"] = mx.stack(rows).astype(mx.float32)
    return out


def save_sharded(folder, weights, shards):
    names = sorted(weights)
    size = -(-len(names) // shards)
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {k: weights[k] for k in names[i * size : (i + 1) * size]}
        index.update({k: file for k in part})
        mx.save_safetensors(str(folder / file), part, {"format": "mlx"})
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text)


def save_gguf(folder, weights, config):
    """As llama.cpp's convert_hf_to_gguf.py lays it out: q's and k's rows in RoPE's pairs, norms in float32."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    arrays = {}
    for name, x in weights.items():
        stem, part = name.rsplit(".", 1)
        heads = {
            "q_proj": config["num_attention_heads"],
            "k_proj": config["num_key_value_heads"],
        }.get(stem.split(".")[-1])
        if heads:
            x = x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            stem = f"blk.{layer}.{names[rest]}"
        else:
            stem = names[stem]
        arrays[f"{stem}.{part}"] = mx.contiguous(
            x.astype(mx.float32) if x.ndim == 1 else x
        )
    u32 = lambda value: mx.array(value, dtype=mx.uint32)
    f32 = lambda value: mx.array(value, dtype=mx.float32)
    vocabulary = config["vocab_size"]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": u32(config["num_hidden_layers"]),
        "llama.context_length": u32(config["max_position_embeddings"]),
        "llama.embedding_length": u32(config["hidden_size"]),
        "llama.feed_forward_length": u32(config["intermediate_size"]),
        "llama.attention.head_count": u32(config["num_attention_heads"]),
        "llama.attention.head_count_kv": u32(config["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": f32(config["rms_norm_eps"]),
        "llama.rope.freq_base": f32(config["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(vocabulary)],
        "tokenizer.ggml.token_type": mx.ones(vocabulary, dtype=mx.int32),
        "tokenizer.ggml.merges": ["t 0", "t 1"],
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
        "tokenizer.ggml.eot_token_id": u32(5),
        "tokenizer.chat_template": "{{ messages }}",
    }
    mx.save_gguf(str(folder / "model.gguf"), arrays, metadata)


def awq_words(codes):
    """[A,8B] numbers below 16 -> int32 [A,B], in AutoAWQ's order."""
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    eights = codes.reshape(codes.shape[0], -1, 8)[:, :, order].astype(np.uint32)
    words = (eights << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    return mx.array(words.view(np.int32))


def save_awq(folder, model, config, group, seed):
    """The model's linear layers but the head as AutoAWQ packs them; every second one has no zeros."""
    rng = np.random.default_rng(seed)
    weights = dict(tree_flatten(model.parameters()))
    for i, name in enumerate(sorted(k for k in weights if k.endswith("_proj.weight"))):
        layer, w = name.removesuffix(".weight"), weights.pop(name)
        outputs, inputs = w.shape
        groups = np.array(w.astype(mx.float32)).reshape(outputs, inputs // group, group)
        scales = np.abs(groups).max(axis=2) / 7
        zeros = np.full(scales.shape, 8) if i % 2 else rng.integers(6, 10, scales.shape)
        codes = np.clip(np.round(groups / scales[..., None]) + zeros[..., None], 0, 15).astype(np.uint32)
        weights[f"{layer}.qweight"] = awq_words(codes.reshape(outputs, inputs).T)
        weights[f"{layer}.scales"] = mx.array(scales.T.astype(np.float16))
        if i % 2 == 0:
            weights[f"{layer}.qzeros"] = awq_words(zeros.T)
    method = dict(quant_method="awq", bits=4, group_size=group, version="gemm", zero_point=True)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}, indent=1) + "\n")
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return load_model(folder)[0]


def build(name, seed):
    changes, how = MODELS[name]
    config = {**BASE, **changes}
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plain = {k: v for k, v in config.items() if not (how.get("dynamic") and k == "rope_scaling")}
    model = random_model(plain, seed)
    cast(model, getattr(mx, how.get("dtype", "float16")))
    if "bits" in how:
        quantize(model, config, how)
    weights = dict(tree_flatten(model.parameters()))
    if how.get("awq"):
        model = save_awq(folder, model, config, how["group_size"], seed)
    elif how.get("gguf"):
        save_gguf(folder, weights, config)
    else:
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if "shards" in how:
            save_sharded(folder, weights, how["shards"])
        else:
            mx.save_safetensors(
                str(folder / "model.safetensors"), weights, {"format": "mlx"}
            )
    cast(model, mx.float32)
    mx.save_safetensors(
        str(folder / "reference.safetensors"), reference(model, config, how, seed)
    )


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    for wanted in sys.argv[1:] or MODELS:
        build(wanted, seed=list(MODELS).index(wanted))
        print(wanted)
