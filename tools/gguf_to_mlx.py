"""A llama GGUF file -> an MLX model folder that mlx-lm opens, bit for bit: the same codes, scales and biases.

    python tools/gguf_to_mlx.py model.gguf folder

The server opens the GGUF itself; this is for the programs it is compared with (tools/golden_text.py, bench/serve.py).
Needs mlx and numpy only. MLX reads Q4_1 as affine 4-bit and Q8_0 as affine 8-bit, both in groups of 32. Two things are
stored in another way than MLX wants them: tensor names, and the rows of q and k, whose rotary pairs GGUF keeps side by
side and the Hugging Face layout keeps half a head apart.
"""
import argparse
import json
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GROUP = 32
CONTROL = 3  # tokenizer.ggml.token_type of a special token


def scalar(value):
    return value.item() if isinstance(value, mx.array) and value.size == 1 else value


def halves(tensor, heads):
    """Rows [head, pair, 2, ...] -> [head, 2, pair, ...]."""
    rows = tensor.shape[0]
    split = tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def weights(tensors, heads, kv_heads):
    renamed = {}
    for name, tensor in tensors.items():
        stem, part = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, kind = stem.split(".")
            if kind == "attn_q":
                tensor = halves(tensor, heads)
            elif kind == "attn_k":
                tensor = halves(tensor, kv_heads)
            stem = f"model.layers.{layer}.{BLOCK_NAMES[kind]}"
        else:
            stem = TOP_NAMES[stem]
        renamed[f"{stem}.{part}"] = tensor
    return renamed


def quantization(tensors):
    bits = {}
    for name, scales in tensors.items():
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            codes = tensors[f"{module}.weight"]
            bits[module] = codes.shape[-1] * 32 // (scales.shape[-1] * GROUP)
    if not bits:
        return {}
    usual = Counter(bits.values()).most_common(1)[0][0]
    table = {"group_size": GROUP, "bits": usual, "mode": "affine"}
    table.update({m: {"group_size": GROUP, "bits": b} for m, b in bits.items() if b != usual})
    return {"quantization": table}


def tokenizer_json(meta):
    vocabulary = meta["tokenizer.ggml.tokens"]
    kinds = np.array(meta["tokenizer.ggml.token_type"])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": int(i), "content": vocabulary[i], "special": True, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}
            for i in np.flatnonzero(kinds == CONTROL)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(vocabulary)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def convert(source, folder):
    tensors, meta = mx.load(str(source), return_metadata=True)
    get = lambda key: scalar(meta[key])
    if get("general.architecture") != "llama" or get("tokenizer.ggml.pre") != "smollm":
        raise SystemExit(f"[gguf_to_mlx] only llama files with the smollm tokenizer; got {source}")
    heads, kv_heads = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    tensors = weights(tensors, heads, kv_heads)
    vocabulary = meta["tokenizer.ggml.tokens"]
    special = {name: get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    hidden = get("llama.embedding_length")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "head_dim": hidden // heads,
        "num_hidden_layers": get("llama.block_count"),
        "intermediate_size": get("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": get("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": get("llama.rope.freq_base"),
        "max_position_embeddings": get("llama.context_length"),
        "vocab_size": len(vocabulary),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        **quantization(tensors),
    }
    tokenizer_config = {
        "tokenizer_class": "GPT2TokenizerFast",
        "bos_token": vocabulary[special["bos"]],
        "eos_token": vocabulary[special["eos"]],
        "unk_token": vocabulary[0],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    for name, content in (("config", config), ("tokenizer", tokenizer_json(meta)), ("tokenizer_config", tokenizer_config)):
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=1))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("folder")
    args = parser.parse_args()
    convert(args.source, args.folder)
