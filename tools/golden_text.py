"""Records what mlx-lm says on the real model: tests/golden/smollm2.json.

    python tools/golden_text.py model.gguf [--dtype float32|float16]

For each prompt of tools/golden_prompts.json, 64 greedy tokens of mlx-lm's own `generate_step`, one prompt at a time
(a batch would round in another way), and with each token the gap between the two best logits: where the gap is small,
another correct program may choose the other token. End-of-text tokens are taken like any other, and decoding goes on
after them. `pieces` is the text each token adds to the output, special tokens left out and an unfinished UTF-8
sequence held back, so that the joined pieces are what a server must answer with `ignore_eos`.

Both run MLX's own quantized kernels on the CPU. float32: every 16-bit scale and bias is widened, which is exact, so that
the reference carries no 16-bit rounding (weights dequantized to dense float32 give the same logits to the last bit, no
faster). float16: every float of the checkpoint becomes float16; the file in the repository has no such record, because MLX's CPU
matmul takes hours for it. (As loaded, the file's float32 norms lift mlx-lm's activations to float32 anyway.)

Restartable: prompts already in the file are skipped, so it can be stopped at any time. Needs mlx-lm 0.32.2.
"""
import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from gguf_to_mlx import convert

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "tests" / "golden" / "smollm2.json"
TOKENS = 64


def cast(model, dtype):
    narrow = lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p
    model.update(tree_map(narrow, model.parameters()))
    return model


def prompts(folder, tokenizer):
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    for entry in json.loads((ROOT / "tools" / "golden_prompts.json").read_text()):
        if "chat" in entry:
            rendered, _ = render_jinja_template([entry["chat"]], chat_template=template, add_generation_prompt=True)
            entry["text"] = rendered[0]
        entry["ids"] = tokenizer.encode(entry["text"], add_special_tokens=False).ids
        yield entry


def pieces(tokenizer, ids):
    said, parts = "", []
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        whole = text if end == len(ids) else text.rstrip("\ufffd")
        parts.append(whole[len(said):])
        said = whole
    return parts


def greedy(model, ids):
    tokens, gaps = [], []
    for token, logprobs in generate_step(mx.array(ids), model, max_tokens=TOKENS):
        best = mx.sort(logprobs.astype(mx.float32))[-2:].tolist()
        tokens.append(int(token))
        gaps.append(round(best[1] - best[0], 4))
    return tokens, gaps


def save(golden):
    """One line for each prompt, so that a diff can be read."""
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    line = lambda value: json.dumps(value, ensure_ascii=False)
    head = {key: value for key, value in golden.items() if key != "prompts"}
    body = ",\n".join(line(entry) for entry in golden["prompts"])
    OUTPUT.write_text(line(head)[:-1] + ', "prompts": [\n' + body + "\n]}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="the GGUF file")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    args = parser.parse_args()

    folder = convert(args.model, Path(tempfile.gettempdir()) / "parallm_golden_model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = list(prompts(folder, tokenizer))
    model = cast(load_model(folder)[0], getattr(mx, args.dtype))
    golden = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    done = {entry["name"]: entry for entry in golden.get("prompts", [])}
    golden = {
        "model": Path(args.model).name,
        "reference": f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}, CPU",
        "tokens": TOKENS,
        "prompts": [{**done.get(entry["name"], {}), **entry} for entry in asked],
    }
    for entry in golden["prompts"]:
        if args.dtype in entry:
            continue
        begin = time.time()
        tokens, gaps = greedy(model, entry["ids"])
        entry[args.dtype] = {"ids": tokens, "gaps": gaps, "pieces": pieces(tokenizer, tokens)}
        save(golden)
        print(f"{entry['name']}: {len(entry['ids'])} + {TOKENS} tokens in {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
