"""Records how llama.cpp splits texts by a GGUF file's tokenizer.ggml.pre: tests/golden/text/gguf_splits.json.

    python tools/golden_gguf_splits.py

The vocabulary is a byte-level BPE that was trained across word borders, so that another split gives other ids. Kinds
of one split have one record. Left out: what llama.cpp approximates and the models' own tokenizer.json files do not,
such as combining marks in tekken's and gpt-4o's splits. Needs llama-cpp-python 0.3.36, gguf 0.19.0 and tokenizers.
"""
import json
import tempfile
from pathlib import Path

import gguf
from llama_cpp import Llama
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "text" / "gguf_splits.json"
KINDS = [
    "smollm", "gpt-2", "llama-bpe", "glm4", "minicpm5", "jais-2", "qwen2", "stablelm2", "laguna", "ufakzeka",
    "seed-coder", "bailingmoe", "exaone-moe", "tekken", "gpt-4o", "tiny_aya", "kimi-k2", "deepseek-v3", "spark2_5",
    "youtu", "deepseek-llm", "deepseek-coder", "falcon", "bloom", "viking", "chameleon", "default",
]
TEXTS = [
    "Hello, World! It's 12345 and I'LL see you'RE.", "\n", "a\n\n\nb", "\ta\t\tb\r\nc\r\n\r\nd", " \n \n x",
    "你好，世界！今天天气很好。", "日本語のテキストとカタカナ、ひらがな。", "한국어 문장입니다", "Привет, мир! Ёлка",
    "العربية نص", "a🙂b", "def f(x):\n    return x**2  # comment\n\tif a != b: pass", "<b>html</b> [INST]",
    "1 12 123 1234 12345 123456", "3.14159, -5%; $100 & #1", "don't won't I'm they'd he'll 'S'T",
    "____----====~~~~ ......!!!???", "end with space ", "http://example.com/a?b=c&d=e#f", "x  y   z    w     v",
    "\n  indented\n    more\n", "١٢٣ ४५६", "key: [1, 2, {\"a\": null}]", "x<|end|> y <tool>z",
]


def vocabulary():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.train_from_iterator(TEXTS * 3 + [text.upper() for text in TEXTS], trainers.BpeTrainer(
        vocab_size=900, min_frequency=1, max_token_length=12, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get) + ["<|end|>", "<tool>"]
    return {
        "tokens": tokens,
        "types": [1] * (len(tokens) - 2) + [3, 4],
        "merges": [" ".join(merge) for merge in model["merges"]],
    }


def write_gguf(path, words, pre):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    writer.add_token_merges(words["merges"])
    writer.add_bos_token_id(len(words["tokens"]) - 2)
    writer.add_eos_token_id(len(words["tokens"]) - 2)
    writer.add_add_bos_token(False)
    for add, value in [("context_length", 64), ("embedding_length", 8), ("block_count", 1), ("head_count", 1),
                       ("feed_forward_length", 8), ("rope_dimension_count", 8), ("layer_norm_rms_eps", 1e-5)]:
        getattr(writer, "add_" + add)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    words = vocabulary()
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = str(Path(folder, kind + ".gguf"))
            write_gguf(path, words, kind)
            model = Llama(path, vocab_only=True, verbose=False)
            records[kind] = [model.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]
    lines = [f"{json.dumps(kind)}: {json.dumps(ids, separators=(',', ':'))}" for kind, ids in records.items()]
    head = json.dumps({"texts": TEXTS, **words}, ensure_ascii=False, separators=(",", ":"))[:-1]
    OUT.write_text(head + ',\n"ids": {\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
