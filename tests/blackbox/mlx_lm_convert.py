"""What mlx-lm itself does, for test_convert.py, in a Python that has it (.venv-golden).

usage: mlx_lm_convert.py JOBS.json

JOBS.json is {"convert": [[source, target, {arguments of mlx_lm.convert.convert}], ...], "logits": [folder, ...]}. The
last line of the output is the logits after a few tokens, a list for each folder, in JSON.
"""
import json
import sys

import mlx.core as mx
from mlx_lm import load, utils
from mlx_lm.convert import convert


class NoTokenizer:
    """convert copies the tokenizer's files; to open it, transformers checks config.json by its own models' rules."""

    def save_pretrained(self, folder):
        pass


mx.set_default_device(mx.cpu)
with open(sys.argv[1]) as file:
    jobs = json.load(file)
load_tokenizer = utils.load_tokenizer
utils.load_tokenizer = lambda *_, **__: NoTokenizer()
for source, target, arguments in jobs["convert"]:
    convert(source, target, **arguments)
utils.load_tokenizer = load_tokenizer
logits = []
for folder in jobs["logits"]:
    model, tokenizer = load(folder)
    ids = tokenizer.encode("The capital of France is")
    logits.append([ids, model(mx.array([ids]))[0, -1].astype(mx.float32).tolist()])
print(json.dumps(logits))
