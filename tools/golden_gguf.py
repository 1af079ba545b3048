"""Writes the GGUF fixtures of tests/golden/, by the reference packages alone, so that our reader is held to them.

usage: golden_gguf.py types                  gguf_types/types.gguf: random blocks of each kind, and their values
       golden_gguf.py names                  gguf_names/<architecture>.gguf and .json: tiny models and their names
       golden_gguf.py text MODEL.gguf OUT    what llama.cpp says to some prompts, greedily (see `text` below)

Needs gguf 0.19.0 (tests/golden's values are its gguf.quants.dequantize), numpy, and for `text` llama-cpp-python 0.3.36.
"""
import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import MODEL_ARCH as Arch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

# --- types -------------------------------------------------------------------

# Kind: where the float16 factors lie in a block.
FACTORS = {
    Kind.Q4_0: [0], Kind.Q4_1: [0, 2], Kind.Q5_0: [0], Kind.Q5_1: [0, 2], Kind.Q8_0: [0],
    Kind.Q2_K: [80, 82], Kind.Q3_K: [108], Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2], Kind.Q6_K: [208],
    Kind.IQ4_NL: [0], Kind.IQ4_XS: [0], Kind.MXFP4: [],
}
ROWS, WIDTH = 3, 256


def blocks(kind, rng, huge):
    """Random bits under factors of every size: usual, negative, tiny (subnormal), 0 and, if asked for, huge."""
    size, width = gguf.GGML_QUANT_SIZES[kind][1], gguf.GGML_QUANT_SIZES[kind][0]
    count = ROWS * WIDTH // width
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    usual = rng.standard_normal((count, 2)).astype(np.float16) * np.float16(0.01)
    special = np.array([3e-7, -6e-5, 0.0, 3.0], np.float16)
    for column, at in enumerate(FACTORS[kind]):
        factors = usual[:, column].copy()
        factors[1] = special[1]
        if count >= 24:
            factors[1:9:2] = special
        if huge and column == 0:
            factors[-1] = np.float16(60000)
        data[:, at:at + 2] = factors.view(np.uint8).reshape(count, 2)
    if kind == Kind.MXFP4:
        data[:, 0] = rng.integers(100, 140, count)
    return data.reshape(ROWS, -1)


def types():
    rng = np.random.default_rng(7)
    path = GOLDEN / "gguf_types" / "types.gguf"
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "none")
    for kind in FACTORS:
        for name, huge in [(kind.name, False)] + ([("huge", True)] if kind == Kind.Q8_0 else []):
            data = blocks(kind, rng, huge)
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
            writer.add_tensor(f"{name}.values", gguf.quants.dequantize(data, kind).astype(np.float32))
    dense = rng.standard_normal((ROWS, 16)).astype(np.float32)
    for kind in (Kind.F32, Kind.F16, Kind.BF16):
        data = gguf.quants.quantize(dense, kind)
        writer.add_tensor(f"{kind.name}.weight", data, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.values", gguf.quants.dequantize(data, kind).astype(np.float32))
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- names -------------------------------------------------------------------

SIZES = dict(hidden_size=16, num_hidden_layers=2, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=10, max_position_embeddings=64, rope_theta=5000.0, rms_norm_eps=1e-5, tie_word_embeddings=True)
LETTERS = dict(h=16, q=16, k=8, f=12, F=24, Q=32, v=10, d=4, e=3, m=6, s=10, a=4, c=3, o=1, H=48)
# DeepSeek's, whose heads rotate 2 of their 6 keys' numbers and have 3 of values: ranks, and heads of these widths.
LETTERS |= dict(r=5, l=8, R=10, A=24, B=28, V=12, K=4, W=3, S=12)

TOP = {"model.embed_tokens.weight": "v h", "model.norm.weight": "h"}
ATTENTION = {"self_attn.q_proj.weight": "q h", "self_attn.k_proj.weight": "k h", "self_attn.v_proj.weight": "k h",
             "self_attn.o_proj.weight": "h q"}
QKV_BIASES = {"self_attn.q_proj.bias": "q", "self_attn.k_proj.bias": "k", "self_attn.v_proj.bias": "k"}
MLP = {"mlp.gate_proj.weight": "f h", "mlp.up_proj.weight": "f h", "mlp.down_proj.weight": "h f"}
NORMS = {"input_layernorm.weight": "h", "post_attention_layernorm.weight": "h"}
FOUR_NORMS = NORMS | {"pre_feedforward_layernorm.weight": "h", "post_feedforward_layernorm.weight": "h"}
QK_NORMS = {"self_attn.q_norm.weight": "d", "self_attn.k_norm.weight": "d"}
EXPERTS = {"mlp.gate.weight": "e h", "mlp.switch_mlp.gate_proj.weight": "e m h", "mlp.switch_mlp.up_proj.weight": "e m h",
           "mlp.switch_mlp.down_proj.weight": "e h m"}
LAYER = ATTENTION | MLP | NORMS
NORM_BIAS = {"model.norm.bias": "h"}  # the last norm's, named beside a layer's
ONE_NORM = {"input_layernorm.weight": "h"}
HEAD = {"lm_head.weight": "v h"}
TYPES_2 = dict(layer_types=["sliding_attention", "full_attention"])


def biases(names):
    return {name.replace("weight", "bias"): shape.split()[0] for name, shape in names.items()}


def swapped(names, change):
    return {change.get(name, name): shape for name, shape in names.items()}


def add_window(w, c):
    w.add_sliding_window(c["sliding_window"])


def add_head_dim(w, c):
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])


def add_gemma3(w, c):
    add_window(w, c)
    add_head_dim(w, c)
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(c["rope_scaling"]["factor"])


def add_gemma2(w, c):
    add_window(w, c)
    add_head_dim(w, c)
    w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
    w.add_final_logit_softcapping(c["final_logit_softcapping"])


def add_experts(w, c):
    w.add_expert_count(c["num_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in c:
        w.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])


def add_mixtral(w, c):
    w.add_expert_count(c["num_local_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])


def add_gpt_oss(w, c):
    add_mixtral(w, c)
    add_window(w, c)
    add_head_dim(w, c)
    w.add_expert_feed_forward_length(c["intermediate_size"])
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(c["rope_scaling"]["factor"])
    w.add_rope_scaling_orig_ctx_len(c["rope_scaling"]["original_max_position_embeddings"])
    w.add_rope_scaling_yarn_beta_fast(c["rope_scaling"]["beta_fast"])


def add_phi3(w, c):
    w.add_rope_scaling_orig_ctx_len(c["original_max_position_embeddings"])
    w.add_sliding_window(c.get("sliding_window", 0))
    w.add_rope_dimension_count(4)


def add_phi3_long(w, c):
    add_phi3(w, c)
    w.add_rope_scaling_attn_factors(1.19)
    for kind in ("long", "short"):
        w.add_tensor(f"rope_factors_{kind}.weight", np.array(c["rope_scaling"][f"{kind}_factor"], np.float32))


def add_stablelm(w, c):
    w.add_rope_dimension_count(2)
    w.add_layer_norm_eps(c["layer_norm_eps"])
    w.add_parallel_residual(c["use_parallel_residual"])


def add_cohere2(w, c):
    w.add_layer_norm_eps(c["layer_norm_eps"])
    w.add_logit_scale(c["logit_scale"])
    add_window(w, c)
    add_head_dim(w, c)
    w.add_rope_dimension_count(4)
    w.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def add_granite(w, c):
    w.add_attention_scale(c["attention_multiplier"])
    w.add_embedding_scale(c["embedding_multiplier"])
    w.add_residual_scale(c["residual_multiplier"])
    w.add_logit_scale(c["logits_scaling"])
    w.add_rope_dimension_count(4)


def add_glm4(w, c):
    add_head_dim(w, c)
    w.add_rope_dimension_count(2)


def add_lfm2(w, c):
    w.add_shortconv_l_cache(c["conv_L_cache"])


def add_starcoder2(w, c):
    w.add_layer_norm_eps(c["norm_epsilon"])


def add_olmo3(w, c):
    add_window(w, c)
    w.add_sliding_window_pattern([t == "sliding_attention" for t in c["layer_types"]])


def add_llama3(w, c):
    w.add_rope_dimension_count(4)
    w.add_tensor("rope_freqs.weight", np.array(c["rope_scaling"]["factors"], np.float32))


def add_deepseek2(w, c):
    rotated, rank = c["qk_rope_head_dim"], c["kv_lora_rank"]
    w.add_rope_dimension_count(rotated)
    w.add_q_lora_rank(c["q_lora_rank"])
    w.add_kv_lora_rank(rank)
    w.add_key_length(rank + rotated)
    w.add_value_length(rank)
    w.add_key_length_mla(c["qk_nope_head_dim"] + rotated)
    w.add_value_length_mla(c["v_head_dim"])
    w.add_expert_count(c["n_routed_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])
    w.add_expert_weights_norm(c["norm_topk_prob"])
    if c["model_type"] == "deepseek_v3":
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    scaling = c["rope_scaling"]
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(scaling["factor"])
    w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    w.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


OLMO2 = ATTENTION | MLP | {"post_attention_layernorm.weight": "h", "post_feedforward_layernorm.weight": "h",
                           "self_attn.q_norm.weight": "q", "self_attn.k_norm.weight": "k"}
STARCODER2 = ATTENTION | {"mlp.c_fc.weight": "f h", "mlp.c_proj.weight": "h f"} | NORMS
LFM2_MLP = {"feed_forward.w1.weight": "f h", "feed_forward.w3.weight": "f h", "feed_forward.w2.weight": "h f",
            "operator_norm.weight": "h", "ffn_norm.weight": "h"}
LFM2_CONV = LFM2_MLP | {"conv.conv.weight": "h o c", "conv.in_proj.weight": "H h", "conv.out_proj.weight": "h h"}
LFM2_ATTENTION = LFM2_MLP | swapped(ATTENTION, {"self_attn.o_proj.weight": "self_attn.out_proj.weight"}) | {
    "self_attn.q_layernorm.weight": "d", "self_attn.k_layernorm.weight": "d"}
GPT_OSS_EXPERTS = {"mlp.router.weight": "e h", "mlp.experts.gate_proj.weight": "e f h",
                   "mlp.experts.up_proj.weight": "e f h", "mlp.experts.down_proj.weight": "e h f",
                   "mlp.router.bias": "e", "mlp.experts.gate_proj.bias": "e f", "mlp.experts.up_proj.bias": "e f",
                   "mlp.experts.down_proj.bias": "e h", "self_attn.sinks": "a"}
FUSED = {"mlp.gate_up_proj.weight": "F h", "mlp.down_proj.weight": "h f"}
STABLELM_NORMS = {f"self_attn.{x}_layernorm.norms.{i}.weight": "d" for x, n in (("q", 4), ("k", 2)) for i in range(n)}

DEEPSEEK = NORMS | {
    "self_attn.q_a_proj.weight": "r h", "self_attn.q_a_layernorm.weight": "r", "self_attn.q_b_proj.weight": "A r",
    "self_attn.kv_a_proj_with_mqa.weight": "R h", "self_attn.kv_a_layernorm.weight": "l",
    "self_attn.o_proj.weight": "h V"}
DEEPSEEK_EXPERTS = EXPERTS | {
    "mlp.shared_experts.gate_proj.weight": "S h", "mlp.shared_experts.up_proj.weight": "S h",
    "mlp.shared_experts.down_proj.weight": "h S"}
DEEPSEEK_CONFIG = dict(
    q_lora_rank=5, kv_lora_rank=8, qk_rope_head_dim=2, qk_nope_head_dim=4, v_head_dim=3, num_key_value_heads=4,
    n_routed_experts=3, num_experts_per_tok=2, n_shared_experts=2, moe_intermediate_size=6, first_k_dense_replace=1,
    routed_scaling_factor=2.5, tie_word_embeddings=False, rope_scaling=dict(
        type="yarn", factor=40.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707))
V2_ATTENTION = DEEPSEEK | {"self_attn.kv_b_proj.weight": "B l"}
V3_ATTENTION = DEEPSEEK | {"self_attn.embed_q.weight": "a l K", "self_attn.unembed_out.weight": "a W l"}

# File: (architecture, config, tensors of a layer, what its converter does beyond the shared). A list of tensors is one
# for each layer.
MODELS = {
    "llama": (Arch.LLAMA, dict(model_type="llama", tie_word_embeddings=False, rope_scaling=dict(
        rope_type="frequency_factors", factors=[1.0, 2.5])), LAYER | HEAD, add_llama3),
    "mixtral": (Arch.LLAMA, dict(model_type="mixtral", num_local_experts=3, num_experts_per_tok=2), ATTENTION | NORMS | {
        name.replace("mlp", "block_sparse_moe", 1): shape.replace("m", "f") for name, shape in EXPERTS.items()}, add_mixtral),
    "qwen2": (Arch.QWEN2, dict(model_type="qwen2"), LAYER | QKV_BIASES, None),
    "qwen3": (Arch.QWEN3, dict(model_type="qwen3", head_dim=4), LAYER | QK_NORMS, add_head_dim),
    "qwen2moe": (Arch.QWEN2MOE, dict(
        model_type="qwen2_moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=6,
        shared_expert_intermediate_size=10), ATTENTION | QKV_BIASES | NORMS | EXPERTS | {
            "mlp.shared_expert.gate_proj.weight": "s h", "mlp.shared_expert.up_proj.weight": "s h",
            "mlp.shared_expert.down_proj.weight": "h s", "mlp.shared_expert_gate.weight": "o h"}, add_experts),
    "qwen3moe": (Arch.QWEN3MOE, dict(
        model_type="qwen3_moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=6, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[]), ATTENTION | QK_NORMS | NORMS | EXPERTS, add_experts),
    "gemma": (Arch.GEMMA, dict(model_type="gemma", head_dim=4), LAYER, add_head_dim),
    "gemma2": (Arch.GEMMA2, dict(
        model_type="gemma2", head_dim=4, query_pre_attn_scalar=4, sliding_window=8, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, **TYPES_2), ATTENTION | MLP | FOUR_NORMS, add_gemma2),
    "gemma3": (Arch.GEMMA3, dict(
        model_type="gemma3_text", head_dim=4, query_pre_attn_scalar=4, sliding_window=8, sliding_window_pattern=6,
        rope_local_base_freq=10000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
        ATTENTION | QK_NORMS | MLP | FOUR_NORMS, add_gemma3),
    "phi3": (Arch.PHI3, dict(model_type="phi3", original_max_position_embeddings=64, tie_word_embeddings=False,
                             sliding_window=7), NORMS | FUSED | HEAD | {
        "self_attn.qkv_proj.weight": "Q h", "self_attn.o_proj.weight": "h q"}, add_phi3),
    "phi3_long": (Arch.PHI3, dict(model_type="phi3", original_max_position_embeddings=16, rope_scaling=dict(
        type="longrope", long_factor=[1.5, 2.0], short_factor=[1.0, 1.25])), NORMS | FUSED | {
        "self_attn.qkv_proj.weight": "Q h", "self_attn.o_proj.weight": "h q"}, add_phi3_long),
    "starcoder2": (Arch.STARCODER2, dict(model_type="starcoder2", norm_epsilon=1e-5), STARCODER2 | biases(STARCODER2) | NORM_BIAS,
                   add_starcoder2),
    "stablelm": (Arch.STABLELM, dict(
        model_type="stablelm", layer_norm_eps=1e-5, use_parallel_residual=True, partial_rotary_factor=0.5,
        use_qkv_bias=True, qk_layernorm=True, tie_word_embeddings=False),
        ATTENTION | MLP | ONE_NORM | QKV_BIASES | biases(ONE_NORM) | NORM_BIAS | HEAD | STABLELM_NORMS, add_stablelm),
    "cohere2": (Arch.COHERE2, dict(
        model_type="cohere2", layer_norm_eps=1e-5, logit_scale=0.25, sliding_window=8, sliding_window_pattern=4,
        head_dim=4), ATTENTION | MLP | {"input_layernorm.weight": "h"}, add_cohere2),
    "olmo2": (Arch.OLMO2, dict(model_type="olmo2"), OLMO2, None),
    "olmo3": (Arch.OLMO2, dict(model_type="olmo3", sliding_window=8, **TYPES_2), OLMO2, add_olmo3),
    "granite": (Arch.GRANITE, dict(
        model_type="granite", attention_multiplier=0.5, embedding_multiplier=12.0, residual_multiplier=0.25,
        logits_scaling=8.0, attention_bias=False, mlp_bias=False), LAYER, add_granite),
    "smollm3": (Arch.SMOLLM3, dict(model_type="smollm3", no_rope_layer_interval=4), LAYER, None),
    "gpt-oss": (Arch.GPT_OSS, dict(
        model_type="gpt_oss", num_local_experts=3, num_experts_per_tok=2, sliding_window=8, head_dim=4,
        rope_scaling=dict(rope_type="yarn", factor=32.0, original_max_position_embeddings=32, beta_fast=32.0,
                          truncate=False), tie_word_embeddings=False, **TYPES_2),
        ATTENTION | biases(ATTENTION) | NORMS | GPT_OSS_EXPERTS | HEAD, add_gpt_oss),
    "glm4": (Arch.GLM4, dict(model_type="glm4", head_dim=4, partial_rotary_factor=0.5, attention_bias=True),
             ATTENTION | QKV_BIASES | NORMS | FUSED | {"post_self_attn_layernorm.weight": "h",
                                                       "post_mlp_layernorm.weight": "h"}, add_glm4),
    "deepseek_v2": (Arch.DEEPSEEK2, DEEPSEEK_CONFIG | dict(
        model_type="deepseek_v2", norm_topk_prob=False, topk_method="greedy"),
        [V2_ATTENTION | MLP | HEAD, V2_ATTENTION | DEEPSEEK_EXPERTS], add_deepseek2),
    "deepseek_v3": (Arch.DEEPSEEK2, DEEPSEEK_CONFIG | dict(
        model_type="deepseek_v3", norm_topk_prob=True, topk_method="noaux_tc", scoring_func="sigmoid"),
        [V3_ATTENTION | MLP | HEAD, V3_ATTENTION | DEEPSEEK_EXPERTS | {"mlp.gate.e_score_correction_bias": "e"}],
        add_deepseek2),
    "lfm2": (Arch.LFM2, dict(model_type="lfm2", conv_L_cache=3, norm_eps=1e-5, block_ff_dim=12, block_dim=16,
                             block_auto_adjust_ff_dim=False, conv_bias=False, layer_types=["conv", "full_attention"]),
             [LFM2_CONV, LFM2_ATTENTION], add_lfm2),
}
PAIRED = {Arch.LLAMA, Arch.GRANITE, Arch.SMOLLM3}
PLUS_ONE = {Arch.GEMMA, Arch.GEMMA2, Arch.GEMMA3}


def values(name, shape):
    """The tensor of that name: a float16 number for each place, which the test computes too."""
    count = int(np.prod(shape))
    start = sum(name.encode()) * 11
    return (((np.arange(count) * 37 + start) % 251 - 125) / 64).astype(np.float32).reshape(shape)


def to_gguf_name(names, name):
    if "block_sparse_moe.switch_mlp" in name:  # LlamaModel.modify_tensors
        letter = dict(gate="w1", down="w2", up="w3")[name.split(".")[-2].split("_")[0]]
        name = f"layers.{name.split('.')[2]}.feed_forward.experts.{letter}.weight"
    name = name.replace("switch_mlp", "experts").replace("embed_q", "k_b_proj").replace("unembed_out", "v_b_proj")
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")  # base.py's filter
    if name.endswith("sinks"):  # GptOssModel.filter_tensors
        name += ".weight"
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if not found:
        raise SystemExit(f"no GGUF name for {name}")
    return found


def pairs(x, heads):
    """LlamaModel.permute: RoPE's pairs side by side."""
    return np.ascontiguousarray(x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2)).reshape(x.shape)


def shapes(layers):
    each = layers if isinstance(layers, list) else [layers] * SIZES["num_hidden_layers"]
    top = swapped(TOP, {"model.norm.weight": "model.embedding_norm.weight"} if each[0] is LFM2_CONV else {})
    top |= {name: shape for name, shape in each[0].items() if name in HEAD | NORM_BIAS}
    for i, layer in enumerate(each):
        top |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items() if name not in HEAD | NORM_BIAS}
    return {name: [LETTERS[letter] for letter in shape.split()] for name, shape in top.items()}


def split_latent(tensors):
    """DeepseekV2Model.modify_tensors: kv_b_proj in two, k's transposed."""
    out = {}
    for name, x in tensors.items():
        if name.endswith("kv_b_proj.weight"):
            heads = x.reshape(4, 7, 8)
            out[name.replace("kv_b_proj", "embed_q")] = heads[:, :4].swapaxes(1, 2)
            out[name.replace("kv_b_proj", "unembed_out")] = heads[:, 4:]
        else:
            out[name] = x
    return out


def stack_head_norms(tensors):
    """StableLMModel._stack_qk_norm."""
    out, stacks = {}, {}
    for name, x in tensors.items():
        if ".norms." in name:
            stacks.setdefault(name.split(".norms.")[0] + ".weight", []).append(x)
        else:
            out[name] = x
    return out | {name: np.stack(rows) for name, rows in stacks.items()}


def write_model(writer, arch, config, tensors, more):
    layers = config["num_hidden_layers"]
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    if arch == Arch.LFM2:
        kinds = config["layer_types"]
        writer.add_head_count_kv([config["num_key_value_heads"] if kind != "conv" else 0 for kind in kinds])
    else:
        writer.add_head_count_kv(1 if arch == Arch.DEEPSEEK2 else config["num_key_value_heads"])
    if arch != Arch.STABLELM:
        writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    if more:
        more(writer, config)
    names = gguf.get_tensor_name_map(arch, layers)
    for name, x in split_latent(stack_head_norms(tensors)).items():
        for part, heads in ((".q_proj.", config["num_attention_heads"]), (".k_proj.", config["num_key_value_heads"])):
            if arch in PAIRED and part in name:
                x = pairs(x, heads)
        if arch in PLUS_ONE and name.endswith("norm.weight"):
            x = x + 1
        if "conv.conv" in name:
            x = x.squeeze(1)
        if name.endswith("shared_expert_gate.weight"):
            x = x.squeeze(0)
        matrix = x.ndim >= 2 and name.endswith("weight") and "norm" not in name and "conv.conv" not in name
        writer.add_tensor(to_gguf_name(names, name), x.astype(np.float16 if matrix else np.float32))


def names():
    folder = GOLDEN / "gguf_names"
    folder.mkdir(exist_ok=True)
    for name, (arch, config, layers, more) in MODELS.items():
        config = SIZES | config
        if arch == Arch.STABLELM:
            config["rope_theta"] = 10000.0  # its converter writes none
        wanted = shapes(layers)
        tensors = {key: values(key, shape) for key, shape in wanted.items()}
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
        write_model(writer, arch, config, tensors, more)
        close(writer)
        text = json.dumps(dict(config=config, tensors=wanted), separators=(",", ":"))
        (folder / f"{name}.json").write_text(text + "\n")
    arch, config, layers, _ = MODELS["qwen2"]
    config = SIZES | config
    writer = gguf.GGUFWriter(folder / "parts.gguf", gguf.MODEL_ARCH_NAMES[arch], split_max_tensors=12)
    write_model(writer, arch, config, {key: values(key, shape) for key, shape in shapes(layers).items()}, None)
    close(writer)


# --- text --------------------------------------------------------------------

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at a temperature of",
    "def fibonacci(n):",
    "The three primary colours are",
    "Die Hauptstadt von Deutschland ist",
    "1, 2, 3, 4, 5,",
    "Q: Who wrote Romeo and Juliet?\nA:",
    "In 1969, the first human being",
    "SELECT name, age FROM users WHERE",
]
TOKENS, BEST = 32, 3


def float32_copy(source, target):
    """The same weights, dequantized by the gguf package: llama.cpp multiplies float32 weights by float32 activations,
    where for quantized weights it rounds the activations to 8 bits. It multiplies the embedding by sqrt(hidden), which
    Google's code and mlx-lm (and so ours) round to bfloat16: the copy's embedding makes up for it, and its output layer
    is a tensor of its own."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name in ("general.architecture", "general.alignment") or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if tensor.name == "token_embd.weight":
            writer.add_tensor("output.weight", data)
            scale = np.sqrt(np.float32(data.shape[1]))
            bits = scale.view(np.uint32)  # to the nearest bfloat16
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
            data = (data.astype(np.float64) * (np.float64(rounded) / np.float64(scale))).astype(np.float32)
        writer.add_tensor(tensor.name, data)
    close(writer)


def text(model, out):
    """For each prompt its ids, the 32 ids that llama.cpp adds greedily, and at each step its three best logits."""
    import llama_cpp

    copy = Path(out).with_suffix(".f32.gguf")
    if not copy.exists():
        float32_copy(model, copy)
    llm = llama_cpp.Llama(str(copy), n_ctx=256, logits_all=True, verbose=False, flash_attn=False,
                          type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    prompts = []
    for prompt in PROMPTS:
        ids = llm.tokenize(prompt.encode(), add_bos=True, special=False)
        llm.reset()
        llm.eval(ids)
        said, best = [], []
        for _ in range(TOKENS):
            logits = llm.scores[llm.n_tokens - 1]
            order = np.argsort(-logits)[:BEST]
            said.append(int(order[0]))
            best.append([[int(i), round(float(logits[i]), 4)] for i in order])
            llm.eval([said[-1]])
        prompts.append(dict(text=prompt, prompt=[int(i) for i in ids], said=said, best=best))
        print(repr(prompt), repr(llm.detokenize(said).decode(errors="replace")), flush=True)
    copy.unlink()
    lines = ",\n".join(json.dumps(prompt, separators=(",", ":")) for prompt in prompts)
    reference = f"llama-cpp-python {llama_cpp.__version__}, float32 weights, activations and KV, CPU"
    Path(out).write_text(f'{{"model": "{Path(model).name}", "reference": "{reference}", "prompts": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    verbs = dict(types=types, names=names, text=text)
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        raise SystemExit(__doc__)
    verbs[sys.argv[1]](*sys.argv[2:])
