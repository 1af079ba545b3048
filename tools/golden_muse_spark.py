"""mlx-lm's Muse Spark for golden.py: its Metal kernels as MLX's ops, which run everywhere, and in float32 throughout; and
what its repository stores."""

import mlx.core as mx
from mlx_lm.models import muse_spark


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


def stored(weights):
    """What sanitize takes: other numbers than these weights', of the same kind."""
    out = dict(weights)
    for key in [k for k in weights if k.endswith("qkvg_proj.weight")]:
        layer = key.removesuffix("self_attn.qkvg_proj.weight")
        q = weights[layer + "self_attn.o_proj.weight"].shape[1]
        kv = out[key].shape[0] // 2 - q
        parts = mx.split(out.pop(key), [q, q + kv, q + 2 * kv])
        out.update(zip((f"{layer}self_attn.{name}_proj.weight" for name in ("q", "k", "v", "gate")), parts))
        experts = [out.pop(f"{layer}mlp.experts.{name}_proj.weight") for name in ("gate", "up", "down")]
        out[layer + "mlp.experts.gate_up_proj"] = mx.concatenate(experts[:2], axis=1)
        out[layer + "mlp.experts.down_proj"] = experts[2]
        for end in muse_spark._ZERO_CENTERED_NORMS:
            out[layer + end] = out[layer + end] - 1
        for short, long in (("attn", "attention"), ("ffn", "feedforward")):
            out.pop(f"{layer}add_{short}_alpha")
            out[f"{layer}post_{long}_residual_gate.gate"] = out.pop(f"{layer}add_{short}_beta") - 1
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
