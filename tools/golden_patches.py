"""mlx-lm's models where golden.py can't have them as they are: those that need Metal, and those that are made for real sizes
alone."""

import sys
import types

import mlx.core as mx
from mlx_lm.models import bitlinear_layers, muse_spark, phi3small
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

sys.modules["hf_olmo"] = types.ModuleType("hf_olmo")  # mlx-lm's OLMo asks for it, and uses nothing of it


def ternary_product(layer, x, packed):
    """In place of mlx-lm's Metal kernel: each two bits of a byte, from the lowest, hold a weight + 1 of a row in
    another quarter of the rows."""
    weight = mx.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)]).astype(mx.float32) - 1
    scale = 1 / layer.weight_scale if layer.invert_weight_scales else layer.weight_scale
    return (x @ weight.T * scale).astype(x.dtype)


bitlinear_layers.BitLinear.execute_matmul_kernel = ternary_product

# Muse Spark: its Metal kernels as MLX's ops, which run everywhere, and in float32 throughout.


class Float32:
    """MLX, but activations that the model wants in bfloat16 stay as they are."""

    bfloat16 = mx.float32

    def __getattr__(self, name):
        return getattr(mx, name)


def expert_routing(logits, expert_bias, *, top_k, multiplier, score_eps, route_scale):
    scores = mx.sigmoid(logits * multiplier)
    experts = mx.argpartition(-(scores + expert_bias), kth=top_k - 1, axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, experts, axis=-1)
    return experts, weights / (weights.sum(axis=-1, keepdims=True) + score_eps) * route_scale


def norm_add_norm(branch, stream, *, alpha, beta, post_weight, post_eps, next_norm):
    scaled = branch if post_weight is None else branch * post_weight
    stream = alpha * stream + beta * mx.fast.rms_norm(scaled, None, post_eps)
    return stream, next_norm(stream) if next_norm is not None else None


def post_expert_norm_combine(experts, weights, *, norm_weight, eps):
    return (mx.fast.rms_norm(experts * norm_weight, None, eps) * weights[..., None]).sum(axis=-2)


def qk_norm(qkvg, *, n_heads, n_kv_heads, head_dim, eps, query_scale):
    heads = mx.unflatten(qkvg, -1, (-1, head_dim))
    normed = mx.fast.rms_norm(heads[..., : n_heads + n_kv_heads, :], None, eps)
    return normed[..., :n_heads, :] * query_scale, normed[..., n_heads:, :]


def qk_norm_rope(qkvg, *, rope_base, offset, head_dim, **norm):
    def rotate(x):
        x = x.swapaxes(1, 2)
        return mx.fast.rope(x, head_dim, traditional=True, base=rope_base, scale=1.0, offset=offset).swapaxes(1, 2)

    return [rotate(x) for x in qk_norm(qkvg, head_dim=head_dim, **norm)]


def rms_norm_sigmoid_gate(x, gate, *, eps):
    return mx.fast.rms_norm(x, None, eps).swapaxes(1, 2).flatten(-2) * mx.sigmoid(gate)


def norm_gain(weight):
    """The checkpoint's weights stay rounded."""
    return (1.0 + weight.astype(mx.float32)).astype(mx.bfloat16)


def modelopt_codes(stacked):
    """Experts in NVFP4: codes, scales and what a second scale is."""
    largest = mx.abs(stacked).max(axis=(1, 2)).astype(mx.float32)
    parts = [mx.quantize(w, 16, 4, mode="nvfp4", global_scale=most) for w, most in zip(stacked, largest)]
    codes, scales = (mx.stack(x) for x in zip(*parts))
    return codes.view(mx.uint8), scales, largest / (6 * 448)


def scaled_experts(layer, x, indices, sorted_indices=False):
    """MLX's gather_qmm takes a global scale on GPUs alone."""
    scale, layer.global_scale = layer.global_scale, None
    y = experts_call(layer, x, indices, sorted_indices)
    layer.global_scale = scale
    return y if scale is None else y * (scale / (6 * 448))[indices][..., None, None]


experts_call, QuantizedSwitchLinear.__call__ = QuantizedSwitchLinear.__call__, scaled_experts


def muse_spark_layout(weights, how):
    """What the repository stores, for sanitize: other numbers than these weights', of the same kind."""
    out = dict(weights)
    for key in [k for k in weights if k.endswith("qkvg_proj.weight")]:
        layer = key.removesuffix("self_attn.qkvg_proj.weight")
        q = weights[layer + "self_attn.o_proj.weight"].shape[1]
        kv = out[key].shape[0] // 2 - q
        parts = mx.split(out.pop(key), [q, q + kv, q + 2 * kv])
        out.update(zip((f"{layer}self_attn.{name}_proj.weight" for name in ("q", "k", "v", "gate")), parts))
        experts = [out.pop(f"{layer}mlp.experts.{name}_proj.weight") for name in ("gate", "up", "down")]
        both, down = layer + "mlp.experts.gate_up_proj", layer + "mlp.experts.down_proj"
        if "method" in how and ".layers.1." in layer:  # ModelOpt's; not the first layer, nor the last
            codes, scales, seconds = zip(*(modelopt_codes(x) for x in experts))
            out[both], out[down] = mx.concatenate(codes[:2], axis=1), codes[2]
            out[both + "_weight_scale"], out[down + "_weight_scale"] = mx.concatenate(scales[:2], axis=1), scales[2]
            out[both + "_weight_scale_2"], out[down + "_weight_scale_2"] = mx.stack(seconds[:2], axis=1), seconds[2]
            out[both + "_input_scale"] = out[down + "_input_scale"] = mx.ones((1,))
        else:
            out[both], out[down] = mx.concatenate(experts[:2], axis=1), experts[2]
        for end in muse_spark._ZERO_CENTERED_NORMS:
            out[layer + end] = out[layer + end] - 1
        for short, long in (("attn", "attention"), ("ffn", "feedforward")):
            out.pop(f"{layer}add_{short}_alpha")
            out[f"{layer}post_{long}_residual_gate.gate"] = out.pop(f"{layer}add_{short}_beta") - 1
    return out


V41_NAMES = [  # ours, DeepSeek's
    ("model.embed_tokens.", "embed."),
    ("lm_head.", "head."),
    ("model.", ""),
    (".self_attn.", ".attn."),
    (".mlp.", ".ffn."),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".attn_hc.", ".hc_attn_"),
    (".ffn_hc.", ".hc_ffn_"),
    (".sinks", ".attn_sink"),
    (".shared_experts.gate_proj.", ".shared_experts.w1."),
    (".shared_experts.down_proj.", ".shared_experts.w2."),
    (".shared_experts.up_proj.", ".shared_experts.w3."),
    (".q_a_proj.", ".wq_a."),
    (".q_b_proj.", ".wq_b."),
    (".kv_proj.", ".wkv."),
    (".compressor.gate_proj.", ".compressor.wgate."),
    (".o_a_proj.", ".wo_a."),
    (".o_b_proj.", ".wo_b."),
    (".q_a_norm.", ".q_norm."),
    (".compressor.kv_norm.", ".compressor.norm."),
    (".indexer.k_proj.", ".indexer.wk."),
    (".gate.e_score_correction_bias", ".gate.bias"),
]
V41_EXPERTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def tiles_of_float8(w):
    """float8 bytes, and an exponent (e8m0) for each 32 x 32 of them."""
    rows, columns = (n // 32 for n in w.shape)
    tiles = w.astype(mx.float32).reshape(rows, 32, columns, 32)
    exponents = mx.ceil(mx.log2(mx.abs(tiles).max(axis=(1, 3)) / 448))
    bytes_ = mx.to_fp8(tiles * mx.power(2.0, -exponents)[:, None, :, None]).reshape(w.shape)
    return bytes_, (exponents + 127).astype(mx.uint8)


def deepseek_v41_layout(weights):
    """DeepSeek's names; float8 projections, experts of 4 bits."""
    out = {}
    for key, value in weights.items():
        name = key
        for ours, theirs in V41_NAMES:
            name = name.replace(ours, theirs, 1)
        stem = name.removesuffix(".weight")
        if ".switch_mlp." in key:
            stem, projection = stem.rsplit(".switch_mlp.", 1)
            projection = V41_EXPERTS[projection]
            for i, w in enumerate(value):
                codes, scales = mx.quantize(w, 32, 4, mode="mxfp4")
                out[f"{stem}.{i}.{projection}.weight"] = codes.view(mx.uint8)
                out[f"{stem}.{i}.{projection}.scale"] = scales
        elif name.endswith((".wq_a.weight", ".wq_b.weight", "attn.wkv.weight", ".wo_a.weight", ".wo_b.weight")) or (
            ".shared_experts." in key
        ):
            w = value.reshape(-1, value.shape[-1])
            out[name], out[f"{stem}.scale"] = tiles_of_float8(w)
        else:
            out[name] = value
    return out


muse_spark.mx = Float32()
for function in (
    expert_routing,
    norm_add_norm,
    post_expert_norm_combine,
    qk_norm,
    qk_norm_rope,
    rms_norm_sigmoid_gate,
    norm_gain,
):
    setattr(muse_spark, function.__name__, function)


def phi3small_scores(model, *args, **kwargs):
    """Ids of a small vocabulary all stand for tokens."""
    model._dummy_tokenizer_ids = model._dummy_tokenizer_ids[:0]
    return phi3small_call(model, *args, **kwargs)


phi3small_call, phi3small.Model.__call__ = phi3small.Model.__call__, phi3small_scores
