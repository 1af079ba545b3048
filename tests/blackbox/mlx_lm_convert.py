"""What mlx-lm itself does, for test_convert.py, in a Python that has it (.venv-golden).

usage: mlx_lm_convert.py JOBS.json

JOBS.json is {"convert": [[source, target, {arguments of mlx_lm.convert.convert}], ...], "logits": [folder, ...],
"named": [[folder, file of tests/golden/gguf_names], ...]}. The last line of the output is, in JSON, the ids and logits
after a few tokens for each of "logits", and how far each of "named" is from what its file says.
"""
import json
import sys
import types
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import load, utils
from mlx_lm.convert import convert


class NoTokenizer:
    """convert copies the tokenizer's files; to open it, transformers checks config.json by its own models' rules."""

    def save_pretrained(self, folder):
        pass


def values(name, shape):
    """tools/golden_gguf.py's."""
    numbers = (np.arange(np.prod(shape)) * 37 + sum(name.encode()) * 11) % 251
    return mx.array(((numbers - 125) / 64).astype(np.float32).reshape(shape))


def distance(folder, file):
    """Of the logits of a converted GGUF file from those of its tensors by name."""
    folder, ids = Path(folder), mx.array([[1, 7, 3, 9, 4]])
    got = utils.load_model(folder)[0](ids)
    wanted = json.loads(Path(file).read_text())
    config = json.loads((folder / "config.json").read_text())
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    scaling = config.get("rope_scaling")  # a GGUF file's own form isn't mlx-lm's
    (folder / "config.json").write_text(json.dumps(config | wanted["config"] | {"rope_scaling": scaling}))
    mx.save_safetensors(str(folder / "model.safetensors"), {k: values(k, v) for k, v in wanted["tensors"].items()})
    return mx.abs(got - utils.load_model(folder)[0](ids)).max().item()


mx.set_default_device(mx.cpu)
sys.modules["hf_olmo"] = types.ModuleType("hf_olmo")  # mlx-lm's OLMo asks for it, and uses nothing of it
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
print(json.dumps([logits, [distance(*job) for job in jobs["named"]]]))
