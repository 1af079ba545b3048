"""Records what SentencePiece and transformers say of small tokenizers: tests/golden/text/.

    python tools/golden_tokenizers.py

Each folder is one of a kind that model repositories have: its files, as transformers names them, and `expected.json`:
for each text `ids`, what transformers' AutoTokenizer gives for the folder, and `spm`, what the `sentencepiece` package
gives for tokenizer.model itself (null where the text names a special token, which SentencePiece never finds in a text).
The SentencePiece models are trained here on a fixed text; training is deterministic. Needs mlx-lm's own packages
(transformers 5.24.0, sentencepiece 0.2.3): .venv-golden of `make golden`; and tiktoken 0.14.0 with its `regex`, and
mistral-common 1.13.1. In the folders with tiktoken's and Mistral's own files `ids` is what those packages give.
"""
import base64
import json
import shutil
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece as spm
from transformers import AutoTokenizer

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "text"

CORPUS = """The quick brown fox jumps over the lazy dog while the other dogs are sleeping in the sun.
A parallel server reads many prompts at once and writes their answers as they come.
What is the capital of France? The capital of France is Paris, and it's a large city.
Numbers such as 1, 12, 123, 1234 and 3.14159 are split in many ways; 2024-01-02 is a date.
def add(first, second):\n    return first + second  # two numbers
Der schnelle braune Fuchs springt über den faulen Hund. Où est la bibliothèque ? ¿Dónde está?
你好，世界。今天天气很好，我们去公园吧。 日本語のテキストです。 한국어 문장입니다. Привет, мир!
I don't know; they're here, we've seen it, and he'll say so. UPPER lower CamelCase snake_case.
"""

TEXTS = [
    "", "a", " ", "  ", " a", "a ", "  a  b  ", "hello world", "Hello, World! It's 12345 and we're here.",
    "\n", "\n\n", "a\n\n\nb", "\ta\t\tb\r\nc", " \n \n x", "你好，世界！", "日本語のテキスト", "한국어", "Привет, мир! Ёлка",
    "العربية", "🙂", "a🙂b👩‍👩‍👧c", "café cafe\u0301", "\u00a0x\u3000y\u200bz", "def f(x):\n    return x**2",
    "1 12 123 1234", "don't won't", "aaaaaaaaaaaaaaaaaaaa", "▁ ▁▁ literal▁mark", "tab\tend\t", "ＡＢ ﬁne ①",
    "http://example.com/a?b=c&d=e#f", "\\n \"quoted\"", "x  y   z    w", "<0x0A> <unknown>",
    "<|user|>hi there<|end|>", "a <|user|> b", "<|user|><|user|> x", " <|user|>",
]
SPECIAL_TEXTS = ["<s>hello</s> there", "<s> a", "</s>\n<s>", "<extra> now <extra>x", "a<unk>b"]

COMMON = dict(vocab_size=600, character_coverage=0.995, hard_vocab_limit=False, minloglevel=2, num_threads=1)
# A few rules of nmt_nfkc's: the whole map alone has 240 kB.
RULES = "\n".join(
    ["FF21\t41", "FF22\t42", "FB01\t66 69", "2460\t31", "9\t20", "A\t20", "D\t20", "A0\t20", "3000\t20", "65 301\tE9"])

MODELS = {
    "spm_bpe": dict(
        train=dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                   remove_extra_whitespaces=False, user_defined_symbols=["<|user|>", "<|end|>"]),
        config={"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "bos_token": "<s>",
                "eos_token": "</s>", "unk_token": "<unk>"}),
    "spm_llama": dict(
        train=dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                   remove_extra_whitespaces=False, split_digits=True),
        config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "legacy": False,
                "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": {
                    str(i): {"content": token, "special": True, "lstrip": False, "rstrip": False, "normalized": False,
                             "single_word": False}
                    for i, token in [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (-1, "<extra>")]}}),
    "spm_gemma": dict(
        train=dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
                   remove_extra_whitespaces=False, split_digits=True,
                   user_defined_symbols=["<|user|>", "<|end|>", "▁▁", "▁▁▁▁", "\n\n"]),
        config={"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "bos_token": "<s>",
                "eos_token": "</s>", "unk_token": "<unk>"}),
    "spm_unigram": dict(
        train=dict(model_type="unigram", normalization_rule_tsv="rules.tsv"),
        config={"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": True, "bos_token": "<s>",
                "eos_token": "</s>", "unk_token": "<unk>"}),
    "spm_unigram_bytes": dict(
        train=dict(model_type="unigram", byte_fallback=True, normalization_rule_name="identity",
                   remove_extra_whitespaces=False, user_defined_symbols=["<|user|>"]),
        config={"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>"}),
}


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def train(folder, options):
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch, "corpus.txt")
        corpus.write_text(CORPUS * 20)
        if options.pop("normalization_rule_tsv", None):
            rules = Path(scratch, "rules.tsv")
            rules.write_text(RULES + "\n")
            options["normalization_rule_tsv"] = str(rules)
        spm.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(Path(scratch, "m")), **COMMON, **options)
        # The trainer's own settings name the scratch folder; the fields that encoding needs stay.
        model = spm.sentencepiece_model_pb2.ModelProto() if hasattr(spm, "sentencepiece_model_pb2") else None
        if model is None:
            from sentencepiece import sentencepiece_model_pb2 as pb
            model = pb.ModelProto()
        model.ParseFromString(Path(scratch, "m.model").read_bytes())
        for field in ("input", "model_prefix"):
            model.trainer_spec.ClearField(field)
        model.normalizer_spec.ClearField("normalization_rule_tsv")
        (folder / "tokenizer.model").write_bytes(model.SerializeToString(deterministic=True))


def record(folder, texts, special_texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")) if (
        folder / "tokenizer.model").exists() else None
    entries = []
    for text in [*texts, *special_texts]:
        entry = {"text": text, "ids": tokenizer.encode(text), "spm": None}
        if own is not None and text not in special_texts:
            entry["spm"] = own.encode(text)
        entries.append(entry)
    write(folder / "expected.json", entries)


def sentence_pieces():
    for name, model in MODELS.items():
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        train(folder, dict(model["train"]))
        config = dict(model["config"])
        size = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                (str(size) if i == "-1" else i): token for i, token in config["added_tokens_decoder"].items()}
        write(folder / "tokenizer_config.json", config)
        record(folder, TEXTS, SPECIAL_TEXTS)


def byte_level():
    """vocab.json and merges.txt of a small byte-level BPE, under two classes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    for name, tokenizer_class, end in [("bpe_qwen2", "Qwen2Tokenizer", "<|im_end|>"),
                                       ("bpe_gpt2", "GPT2Tokenizer", "<|endoftext|>")]:
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        specials = ["<|endoftext|>"] if tokenizer_class == "GPT2Tokenizer" else []
        bpe.train_from_iterator(CORPUS.splitlines(), trainers.BpeTrainer(
            vocab_size=600, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False))
        bpe.model.save(str(folder))
        size = bpe.get_vocab_size()
        config = {"tokenizer_class": tokenizer_class, "eos_token": end, "unk_token": "<|endoftext|>"}
        if tokenizer_class == "Qwen2Tokenizer":
            config["added_tokens_decoder"] = {
                str(size + i): {"content": token, "special": special, "lstrip": False, "rstrip": False,
                                "normalized": False, "single_word": False}
                for i, (token, special) in enumerate(
                    [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<tool_call>", False)])}
            config["add_bos_token"] = False
        write(folder / "tokenizer_config.json", config)
        record(folder, TEXTS, ["<|im_start|>user\nhi<|im_end|>\n", "a<|endoftext|>b", "<tool_call> x"])


def trained_ranks(pattern, size):
    from tiktoken._educational import bpe_train

    words = pattern.replace("&&[^", "--[")  # the `regex` package's way, for training only
    return bpe_train(CORPUS, size, "(?V1)" + words, visualise=None)


def start(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_ranks(path, ranks):
    lines = [base64.b64encode(token).decode() + f" {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1])]
    path.write_text("".join(lines))


def tiktoken_ranks():
    """tiktoken.model of a small vocabulary, as Kimi's repositories have it, and what the tiktoken package says."""
    import tiktoken

    han, lower, upper = r"\p{Han}", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
    ends = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    pattern = "|".join([
        f"[{han}]+", rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{ends}", rf"[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{ends}",
        r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
    folder = start("tiktoken")
    ranks = trained_ranks(pattern, 500)
    write_ranks(folder / "tiktoken.model", ranks)
    named = {500: "[BOS]", 501: "[EOS]", 502: "<|im_end|>", 503: "<|im_user|>", 755: "[PAD]"}
    write(folder / "tokenizer_config.json", {
        "tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "eos_token": "[EOS]", "added_tokens_decoder": {
            str(i): {"content": token, "special": True, "lstrip": False, "rstrip": False, "normalized": False,
                     "single_word": False} for i, token in named.items()}})
    special = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(500, 756)}  # tokenization_kimi.py
    kimi = tiktoken.Encoding("kimi", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    texts = [*TEXTS, "<|im_user|>user\nhi<|im_end|>", "[BOS] a <|reserved_token_600|>[PAD]", "你好world再见ABCdef"]
    write(folder / "expected.json", [
        {"text": text, "ids": kimi.encode(text, allowed_special="all"), "spm": None} for text in texts])


QWEN_PATTERN = "|".join([
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+",
    r"\s+(?!\S)", r"\s+"])


def named_tiktoken(name, tokenizer_class, named, extras, begin, texts):
    """*.tiktoken beside a class whose special tokens its code names (tokenization_qwen.py, tokenization_hy.py), which
    normalizes a text first. `begin`: before every text."""
    import tiktoken

    folder = start(name)
    ranks = trained_ranks(QWEN_PATTERN, 450)
    write_ranks(folder / f"{name}.tiktoken", ranks)
    write(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class})
    tokens = [*named, *(f"<|extra_{i}|>" for i in range(extras))]
    special = {token: len(ranks) + i for i, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(name, pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    write(folder / "expected.json", [
        {"text": text, "spm": None,
         "ids": begin + encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")}
        for text in [*TEXTS, *texts]])


def tekken():
    """A small tekken.json whose vocabulary is longer than the model's, and what mistral-common says. It finds no special
    token in a text: those stand between parts that it encodes."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    pattern = "|".join([
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*", r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
    ranks = trained_ranks(pattern, 450)
    bytes_first = sorted(ranks, key=lambda token: (len(token) > 1, token if len(token) == 1 else b"", ranks[token]))
    vocab = [{"rank": i, "token_bytes": base64.b64encode(token).decode(),
              "token_str": token.decode() if token.isascii() else None} for i, token in enumerate(bytes_first)]
    counts = {"num_vocab_tokens": 450, "default_vocab_size": 460, "default_num_special_tokens": 30}
    named = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]"]
    for name, version, special in [
        ("tekken", "v3", None),
        ("tekken_named", "v13", [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(named)]),
    ]:
        folder = start(name)
        file = {"config": {"pattern": pattern, "version": version, **counts}, "vocab": vocab}
        if special:
            file = {**file, "type": "Tekken", "version": 1, "special_tokens": special}
        write(folder / "tekken.json", file)
        own = Tekkenizer.from_file(folder / "tekken.json")
        entries = [{"text": text, "ids": own.encode(text, bos=True, eos=False), "spm": None} for text in TEXTS]
        for parts in [["[INST]", "Hi there", "[/INST]"], ["a", "</s>", "<s>", " b"], ["[THINK]" if special else "[IMG]", "x"],
                      ["<SPECIAL_25>"]]:
            ids = [x for part in parts for x in (
                [own.get_special_token(part)] if own.is_special(part) else own.encode(part, bos=False, eos=False))]
            entries.append({"text": "".join(parts), "ids": [own.bos_id, *ids], "spm": None})
        write(folder / "expected.json", entries)


if __name__ == "__main__":
    sentence_pieces()
    byte_level()
    tiktoken_ranks()
    named_tiktoken("qwen", "QWenTokenizer", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 205, [],
                   ["<|im_start|>user\nhi<|im_end|>\n", "a<|extra_0|><|extra_204|>", "cafe\u0301 <|endoftext|>"])
    named_tiktoken("hunyuan", "HYTokenizer", ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"], 205,
                   [451], ["a<|extra_0|>b", "x<|eos|><|pad|>"])
    tekken()
