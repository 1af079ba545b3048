"""Makes tiny random models and the logits that mlx-lm gives for them, which the golden tests compare with.

usage: golden.py OUT [name ...]      (needs mlx-lm; without names: all)

Each tests/golden/models/<name>.json is a config.json; its key "golden" (optional) says how the model is stored:
  dtype       float16 unless named
  shards      files of weights
  gguf        a GGUF file instead of a folder
  dynamic     mlx-lm's Llama can't do "dynamic" RoPE at a fixed prompt length: the frequencies follow transformers'
              modeling_rope_utils.py
  windows     mlx-lm's model knows no sliding window: one for each layer (0: none), as transformers' has
  single      mlx-lm's model can't take a prompt at once (OLMo's adds a mask that is a word, Phi-3-small's blocks then
              begin elsewhere): a token at a time
  lengths     of the prompts
  bits, group_size, mode, layers   quantized so (layers: what differs), and no second, 4-bit, model is made
  only        of that: a part of the names of layers that are quantized
  unnamed     layers that config.json leaves out, so that a loader must tell their kind from the tensors
  awq         a group size: as AutoAWQ packs them, and no second model
  quantized   false: no second model
  hf          stored under the names and in the layout of Hugging Face's repository: {"stacked": "separate"}, where
              "{}" of the separate name counts experts, and a list of names shares the rows among them
  layout      a list of what else differs in Hugging Face's repository: "conv" ([C,1,K]), "norms" (stored as weight - 1),
              "c_" (GPT-2's matrices with inputs first), "bytes" (codes), "muse_spark", "deepseek_v41"
  fused       of that layout: tensors that are one there, a list of rules (see `fuse`)
  fp8         the projections in float8 with a scale for each block of 128 x 128, as DeepSeek stores them
  int4        separate experts packed as compressed-tensors does, as Kimi K2 stores them
  method      config.json's "quantization_config", in place of MLX's "quantization"; BitNet's makes ternary layers
  merged      of that layout: experts' matrices one after another in one tensor, DBRX's w2 with inputs first,
              {"name with {}": "new name"}
  sanitized   true: the reference's weights are what mlx-lm's sanitize makes of those that are stored, as with any layout
  extra       names of tensors that mlx-lm's sanitize drops, stored as well
  tied        true: as mlx-lm opens a checkpoint without an output layer, where the file decides that
  scale       factor on the random weights
  salt        other random weights. A router's near tie falls the other way in 16 bits: a token goes to another expert,
              and the logits jump, in mlx-lm too. Each model has a salt (none, where the first weights will do) with
              which its logits' drift in 16 bits stays within the tests' bounds, whatever the order of sums:
              golden_salt.py finds it

OUT/<name>/ is then a checkpoint with reference.safetensors:
  prompt.<i>  int32 [L]      three prompts of different lengths
  next.<i>    int32 [4]      tokens fed one at a time after the prompt
  logits.<i>  float32 [5,V]  after the prompt, then after each of `next`
and OUT/<name>-4bit/ the same model quantized by mlx-lm, 4 bits in groups of 32. The reference is mlx-lm's own model on
the stored weights cast to float32, one prompt at a time. Weights follow from the name and its salt alone. What is made
already, from the same file by the same program, is left as it is.
"""

import copy
import hashlib
import importlib.metadata
import json
import shutil
import sys
import zlib
from pathlib import Path

import golden_patches
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm import utils
from mlx_lm.models import bitlinear_layers
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import make_prompt_cache

CONFIGS = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
LENGTHS = [23, 5, 14]
EMBEDDINGS = ("wte.weight", "wpe.weight", "embeddings.weight", "embed.weight", "embed_in.weight")


def build_model(config):
    model_class, args_class = utils._get_classes(config)
    return model_class(args_class.from_dict(copy.deepcopy(config)))  # some write into it


def draw(rng, path, x, how):
    """Weights large enough that attention, positions and gates change the logits a lot."""
    shape, last = x.shape, path.rsplit(".", 1)[-1]
    if path.endswith(("quant_key_scale", "quant_value_scale")):
        return mx.array(1 / 32, dtype=mx.float32)
    if path.endswith("weight_scale"):
        factor = rng.uniform(0.15, 0.3, shape).astype(np.float32)
        return mx.array(1 / factor if how.get("method", {}).get("linear_class") != "autobitlinear" else factor)
    if x.dtype == mx.uint32:  # Prism's codes of 2 bits
        return mx.array(rng.integers(0, 2**32, shape, dtype=np.uint32))
    if last in ("scales", "biases"):
        middle = 0.06 if last == "scales" else -0.09
        return mx.array((middle * rng.uniform(0.8, 1.2, shape)).astype(np.float32))
    if last == "signs":
        return mx.array(rng.choice([-1.0, 1.0], shape).astype(np.float32))
    if x.dtype == mx.uint8:  # four of 0, 1, 2
        quarters = rng.integers(0, 3, (4, *shape)) << np.array([0, 2, 4, 6]).reshape(4, 1, 1)
        return mx.array(quarters.sum(axis=0), dtype=mx.uint8)
    if not shape:
        return mx.array(0.5 * rng.standard_normal(), dtype=mx.float32)
    if last == "A_log":
        values = np.log(rng.uniform(1, 8, shape))
    elif last in ("dt_bias", "D", "sinks", "e_score_correction_bias") or last.endswith("bias"):
        values = 0.3 * rng.standard_normal(shape)
    elif len(shape) == 1:  # a norm's
        values = 1 + 0.2 * rng.standard_normal(shape)
    elif "conv" in path:  # depthwise: few inputs
        values = rng.standard_normal(shape) / np.sqrt(shape[1])
    elif "embed_tokens" in path or path.endswith(EMBEDDINGS):
        values = rng.standard_normal(shape)
    else:
        values = how.get("scale", 1.6) * rng.standard_normal(shape) / np.sqrt(shape[-1])
    return mx.array(values.astype(np.float32))


def random_model(config, seed, how):
    rng = np.random.default_rng(seed)
    model = build_model(config)
    if how.get("method", {}).get("quant_method") == "bitnet":
        bitlinear_layers.bitnet_quantize(model, how["method"])
    if how.get("tied"):
        model.sanitize({k: v for k, v in tree_flatten(model.parameters()) if "lm_head" not in k})
    parameters = sorted(tree_flatten(model.parameters()))
    model.load_weights([(k, draw(rng, k, v, how)) for k, v in parameters])
    return model


def cast(model, dtype):
    def to(x):
        return x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x

    model.update(tree_map(to, model.parameters()))


def quantize(model, config, how):
    layers = how.get("layers", {})

    def kind(path, module):
        return layers.get(path, how.get("only", "") in path and hasattr(module, "to_quantized"))

    named = kind if layers or "only" in how else None
    model, config = utils.quantize_model(
        model, config, how["group_size"], how["bits"], how.get("mode", "affine"), quant_predicate=named
    )
    for path, value in layers.items():  # mlx-lm leaves out what it does not quantize
        config["quantization"].setdefault(path, value)
    for path in how.get("unnamed", []):
        del config["quantization"][path]
    return model, config


class FixedRope(nn.Module):
    """Rotation by given frequencies, at any offset."""

    def __init__(self, inv_freq):
        super().__init__()
        self._freqs = mx.array((1 / inv_freq).astype(np.float32))

    def __call__(self, x, offset=0):
        return mx.fast.rope(
            x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=offset, freqs=self._freqs
        )


def dynamic_frequencies(config, length):
    dim = config["hidden_size"] // config["num_attention_heads"]
    factor = config["rope_scaling"]["factor"]
    longest = config["max_position_embeddings"]
    length = max(length, longest)
    base = config["rope_theta"] * ((factor * length / longest) - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / base ** (np.arange(0, dim, 2) / dim)


class Windowed(nn.Module):
    """A layer that sees a window, at any offset."""

    def __init__(self, layer, window):
        super().__init__()
        self._layer = layer
        self._window = window or None
        self.full_attn = True  # PLaMo 3: keep all keys

    def __call__(self, x, mask=None, cache=None):
        return self._layer(x, create_causal_mask(x.shape[1], cache.offset, self._window), cache)


def slide(model, how):
    for i, window in enumerate(how.get("windows", [])):
        layers = getattr(model.model.layers, "layers", model.model.layers)  # PLaMo 3's decoder is a module of its own
        layers[i] = Windowed(layers[i], window)


def vocabulary(config):
    text = config.get("text_config", config)
    return text.get("vocab_size", config.get("vocab_size"))


def answer(model, prompt, after, how, times=1):
    """[5,times,V]: the logits after the prompt and after each token behind it, of the same sequence so many times."""
    cache = make_prompt_cache(model)

    def last(tokens):
        return model(mx.array([[int(token) for token in tokens]] * times), cache=cache)[:, -1]

    if how.get("single"):
        for token in prompt[:-1]:
            last([token])
        prompt = prompt[-1:]
    return mx.stack([last(prompt), *(last([token]) for token in after)]).astype(mx.float32)


def reference(model, config, how, seed):
    rng = np.random.default_rng(seed)
    out = {}
    slide(model, how)
    for i, length in enumerate(how.get("lengths", LENGTHS)):
        prompt = rng.integers(0, vocabulary(config), length)
        after = rng.integers(0, vocabulary(config), 4)
        if how.get("dynamic"):
            for layer in model.layers:
                layer.self_attn.rope = FixedRope(dynamic_frequencies(config, length))
        out[f"prompt.{i}"] = mx.array(prompt.astype(np.int32))
        out[f"next.{i}"] = mx.array(after.astype(np.int32))
        out[f"logits.{i}"] = answer(model, prompt, after, how)[:, 0]
    return out


HF_NORMS = ("input_layernorm", "post_attention_layernorm", "model.norm", "q_norm", "k_norm")


def hf_tensor(key, value, layout):
    if "conv" in layout and value.ndim == 3 and "conv" in key:
        return mx.contiguous(value.moveaxis(2, 1))
    if "norms" in layout and key.removesuffix(".weight").endswith(HF_NORMS):
        return value - 1
    if "bytes" in layout and value.dtype == mx.uint32:
        return value.view(mx.uint8)
    if "c_" in layout and value.ndim == 2 and ".c_" in key:
        return mx.contiguous(value.T)
    return value


def fuse(weights, rule):
    """Tensors that stand beside each other to one, by rule: the names' ends ("parts") and the end of the new name
    ("to"); experts' rows one after another, or ("interleaved") in turn; "folded": the second as one more expert;
    "swapped": inputs first; "blocks": mxfp4 codes as bytes, 16 a group; "latent": embed_q and unembed_out as
    kv_b_proj."""
    first, *others = rule["parts"]
    for key in [k for k in weights if k.endswith(first)]:
        parts = [weights.pop(key.removesuffix(first) + part) for part in [first, *others]]
        if rule.get("latent"):
            x = mx.concatenate([parts[0].swapaxes(1, 2), parts[1]], axis=1).flatten(0, 1)
        elif rule.get("interleaved"):
            x = mx.stack(parts, axis=2).flatten(1, 2)
        elif rule.get("folded"):
            x = mx.concatenate([parts[0], parts[1][None]])
        else:
            x = mx.concatenate(parts, axis=-2)
        if rule.get("swapped"):
            x = x.swapaxes(1, 2)
        if rule.get("blocks"):
            x = mx.unflatten(mx.contiguous(x).view(mx.uint8), -1, (-1, 16))
        weights[key.removesuffix(first) + rule["to"]] = mx.contiguous(x)


def merge(weights, pattern, to):
    first = pattern.format(0)
    for key in [k for k in weights if k.endswith(first)]:
        stem, parts = key.removesuffix(first), []
        while (name := stem + pattern.format(len(parts))) in weights:
            x = weights.pop(name)
            parts.append(x.T if ".w2." in pattern else x)
        weights[stem + to] = mx.concatenate(parts, axis=0)


def unpack_latent(weights, how):
    """Quantized embed_q and unembed_out as floats, for kv_b_proj, which is quantized again."""
    kind = {name: how[name] for name in ("group_size", "bits")}
    for key in [k for k in weights if k.endswith(("embed_q.scales", "unembed_out.scales"))]:
        packed = [weights.pop(key.replace("scales", part)) for part in ("weight", "scales", "biases")]
        weights[key.replace("scales", "weight")] = mx.dequantize(*packed, **kind)


def pack_latent(weights, how):
    for key in [k for k in weights if k.endswith("kv_b_proj.weight")]:
        packed = mx.quantize(weights.pop(key), group_size=how["group_size"], bits=how["bits"])
        weights.update(zip((key, key.replace("weight", "scales"), key.replace("weight", "biases")), packed))


def store_float8(weights):
    """Projections to weight (float8) and weight_scale_inv (float32, one a block)."""
    side = 128
    for key in [k for k in weights if k.endswith(("_proj.weight", "_mqa.weight")) and weights[k].ndim == 2]:
        w = np.array(weights[key].astype(mx.float32))
        rows, columns = (-(-n // side) for n in w.shape)
        scales = np.zeros((rows, columns), np.float32)
        for r, c in np.ndindex(rows, columns):
            block = w[r * side : (r + 1) * side, c * side : (c + 1) * side]
            scales[r, c] = np.abs(block).max() / 448  # float8's largest
            block /= scales[r, c]
        weights[key] = mx.to_fp8(mx.array(w))
        weights[f"{key}_scale_inv"] = mx.array(scales)


def store_int4(weights):
    """Separate experts as compressed-tensors packs symmetric integers: code + 8, eight in a word, groups of 32."""
    for key in [k for k in weights if ".experts." in k and weights[k].ndim == 2]:
        w = np.array(weights.pop(key).astype(mx.float32))
        groups = w.reshape(w.shape[0], -1, 32)
        scales = mx.array(np.abs(groups).max(axis=2, keepdims=True) / 7).astype(mx.bfloat16)
        codes = np.clip(np.round(groups / np.array(scales.astype(mx.float32))), -8, 7) + 8
        eights = codes.reshape(w.shape[0], -1, 8).astype(np.uint32)
        words = (eights << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
        layer = key.removesuffix("weight")
        weights[f"{layer}weight_packed"] = mx.array(words.view(np.int32))
        weights[f"{layer}weight_scale"] = scales.squeeze(2)
        weights[f"{layer}weight_shape"] = mx.array(w.shape, dtype=mx.int32)


def hf_layout(weights, how):
    """The names and the layout of Hugging Face's repository."""
    out = {}
    latent = any(rule.get("latent") for rule in how.get("fused", []))
    again = latent and any(k.endswith("embed_q.scales") for k in weights)
    layout = how.get("layout", [])
    if "muse_spark" in layout:
        weights = golden_patches.muse_spark_layout(weights, how)
    if "deepseek_v41" in layout:
        weights = golden_patches.deepseek_v41_layout(weights)
    if again:
        unpack_latent(weights, how)
    for key, value in weights.items():
        value = hf_tensor(key, value, layout)
        for stacked, separate in how.get("hf", {}).items():
            if stacked in key:
                if isinstance(separate, list):
                    rows = mx.split(value, len(separate))
                    out.update({key.replace(stacked, name): mx.contiguous(x) for name, x in zip(separate, rows)})
                elif "{}" in separate:
                    for e in range(value.shape[0]):
                        out[key.replace(stacked, separate.format(e))] = mx.contiguous(value[e])
                else:
                    out[key.replace(stacked, separate)] = value
                break
        else:
            out[key] = value
    for rule in how.get("fused", []):
        fuse(out, rule)
    for pattern, to in how.get("merged", {}).items():
        merge(out, pattern, to)
    if again:
        pack_latent(out, how)
    if how.get("fp8"):
        store_float8(out)
    if how.get("int4"):
        store_int4(out)
    return out | {name: mx.ones((4, 4)) for name in how.get("extra", [])}


def name_float8(file):
    """MLX writes float8 as plain bytes: the type's name into the header."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name in header:
        if f"{name}_scale_inv" in header:
            header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def save_sharded(folder, weights, shards):
    size = -(-len(weights) // shards)
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(sorted(weights.items())[i * size : (i + 1) * size])
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
        arrays[f"{stem}.{part}"] = mx.contiguous(x.astype(mx.float32) if x.ndim == 1 else x)

    if "rope_scaling" in config:  # "longrope" from the model's own length is a factor for each frequency, and no more
        arrays["rope_freqs.weight"] = mx.array(config["rope_scaling"]["long_factor"])

    u32, f32 = (lambda value, dtype=dtype: mx.array(value, dtype=dtype) for dtype in (mx.uint32, mx.float32))
    size = config["vocab_size"]
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
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(size)],
        "tokenizer.ggml.token_type": mx.ones(size, dtype=mx.int32),
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


def save_awq(folder, weights, config, group, seed):
    """The linear layers but the head as AutoAWQ packs them; every second one has no zeros. Gives mlx-lm's model."""
    rng = np.random.default_rng(seed)
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
    return utils.load_model(folder)[0]


def with_method(config, method):
    """Repositories of several parts say it in their text model's config."""
    config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    if "text_config" in config:
        return config | {"text_config": config["text_config"] | {"quantization_config": method}}
    return config | {"quantization_config": method}


def save(folder, model, config, how, seed):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    if "method" in how:
        config = with_method(config, how["method"])
    other = bool({"hf", "extra", "fused", "fp8", "layout", "merged", "sanitized"} & how.keys())
    if other:
        weights = hf_layout(weights, how)
    if "awq" in how:
        model = save_awq(folder, weights, config, how["awq"], seed)
    elif how.get("gguf"):
        save_gguf(folder, weights, config)
    else:
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if "shards" in how:
            save_sharded(folder, weights, how["shards"])
        else:
            mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
            if how.get("fp8"):
                name_float8(folder / "model.safetensors")
    if other:  # what mlx-lm itself makes of it
        model = utils.load_model(folder)[0]
    cast(model, mx.float32)
    mx.save_safetensors(str(folder / "reference.safetensors"), reference(model, config, how, seed))


def models(name, config, how, salt):
    """name, model, its config, how it is stored: of the model and, where there is one, its 4-bit twin."""
    seed = zlib.crc32((name + str(salt)).encode())
    plain = {k: v for k, v in config.items() if not (how.get("dynamic") and k == "rope_scaling")}

    def made():
        model = random_model(plain, seed, how)
        cast(model, getattr(mx, how.get("dtype", "float16")))
        return model

    if "bits" in how:
        model, stored = quantize(made(), config, how)
        return [(name, model, stored, how, seed)]
    one = (name, made(), config, how, seed)
    if not how.get("quantized", "awq" not in how):
        return [one]
    model, stored = quantize(made(), config, {"bits": 4, "group_size": 32})
    return [one, (f"{name}-4bit", model, stored, {k: how[k] for k in ("lengths", "windows", "single") if k in how}, seed)]


def build(name, config, out):
    how = config.pop("golden", {})
    for folder, *rest in models(name, config, how, how.get("salt", "")):
        save(out / folder, *rest)


def main(out, wanted):
    program = b"".join(Path(f).read_bytes() for f in (__file__, golden_patches.__file__))
    program += importlib.metadata.version("mlx-lm").encode()
    names = {path.stem: path for path in sorted(CONFIGS.glob("*.json"))}
    for name in wanted or names:
        text = names[name].read_bytes()
        key = hashlib.sha256(program + text).hexdigest()
        stamp = out / name / "made-from"
        if stamp.exists() and stamp.read_text() == key:
            continue
        build(name, json.loads(text), out)
        stamp.write_text(key)
        print(name, flush=True)
    for folder in out.iterdir():  # of configs that are gone
        if folder.name.removesuffix("-4bit") not in names:
            shutil.rmtree(folder)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    main(target, sys.argv[2:])
