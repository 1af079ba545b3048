"""Records tests/golden/transformers: tiny random models as transformers saves them, with the logits that it gives.

usage: golden_transformers.py OUT [name ...]      (needs torch and transformers; rwkv7_hf: flash-linear-attention, mlx-lm)

Of models where mlx-lm says something else, or can't open the repository's files:
  ernie4_5_moe   the experts are chosen with a bias, which mlx-lm drops
  lfm2_vl        the names of transformers, and its underscore; mlx-lm has the older ones
  rwkv7_hf       flat tensors, as fla's own class saves them; its kernels need a GPU, so that the logits are mlx-lm's

OUT/<name>/ is a checkpoint with reference.safetensors, as tools/golden.py makes them: prompt.<i>, next.<i>, logits.<i>.
Weights follow from a seed. They are recorded once: the tests need none of these packages.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

LENGTHS = [23, 5, 14]
VOCABULARY = 64


def randomize(model):
    """Weights large enough that attention, positions and gates change the logits a lot; none is left at its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.ndim < 2 or "norm" in name or ".attn.x_" in name or "e_score" in name:
                p.copy_(0.2 * torch.randn_like(p) + (1 if "norm" in name and name.endswith("weight") else 0))
            elif "embed" in name:
                p.copy_(torch.randn_like(p))
            else:
                p.copy_(1.6 * torch.randn_like(p) / p.shape[-1] ** 0.5)
    return model


def record(folder, logits_of):
    """logits_of: ids -> [len(ids),V]."""
    rng = np.random.default_rng(2)
    out = {}
    for i, length in enumerate(LENGTHS):
        ids = rng.integers(0, VOCABULARY, length + 4).astype(np.int32)
        out[f"prompt.{i}"], out[f"next.{i}"] = ids[:length].copy(), ids[length:].copy()
        out[f"logits.{i}"] = np.ascontiguousarray(logits_of(ids)[length - 1 :], np.float32)
    save_file(out, str(folder / "reference.safetensors"))


def by_torch(model):
    @torch.no_grad()
    def logits_of(ids):
        return model(torch.tensor(ids, dtype=torch.long)[None], use_cache=False).logits[0].float().numpy()

    return logits_of


def by_mlx_lm(folder):
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model = load_model(folder)[0]
    return lambda ids: np.array(model(mx.array(ids)[None])[0])


SIZES = dict(
    hidden_size=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2
)


def ernie4_5_moe(folder):
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    config = Ernie4_5_MoeConfig(
        **SIZES,
        num_hidden_layers=3,
        intermediate_size=48,
        moe_intermediate_size=16,
        moe_num_experts=6,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        tie_word_embeddings=False,
    )
    model = randomize(Ernie4_5_MoeForCausalLM(config)).eval()
    model.save_pretrained(folder)
    record(folder, by_torch(model))


def lfm2_vl(folder):
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    text = dict(
        **SIZES,
        model_type="lfm2",
        num_hidden_layers=3,
        intermediate_size=48,
        block_multiple_of=16,
        layer_types=["conv", "full_attention", "conv"],
        conv_L_cache=3,
    )
    eyes = dict(
        model_type="siglip2_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_patches=4, patch_size=2,
    )
    config = Lfm2VlConfig(text_config=text, vision_config=eyes, projector_hidden_size=16, image_token_id=3)
    model = randomize(Lfm2VlForConditionalGeneration(config)).eval()
    model.save_pretrained(folder)
    record(folder, by_torch(model))


def rwkv7_hf(folder):
    from fla.models import RWKV7Config, RWKV7ForCausalLM

    config = RWKV7Config(
        hidden_size=32, head_dim=16, num_hidden_layers=2, intermediate_size=48, vocab_size=VOCABULARY,
        decay_low_rank_dim=8, gate_low_rank_dim=8, a_low_rank_dim=8, v_low_rank_dim=8, fuse_norm=False,
        bos_token_id=1, eos_token_id=2,
    )
    randomize(RWKV7ForCausalLM(config)).save_pretrained(folder)
    record(folder, by_mlx_lm(folder))


if __name__ == "__main__":
    out, *names = sys.argv[1:]
    for name in names or ["ernie4_5_moe", "lfm2_vl", "rwkv7_hf"]:
        folder = Path(out, name)
        folder.mkdir(parents=True, exist_ok=True)
        globals()[name](folder)
