"""`mlx_parallm convert` beside mlx-lm's: the same tensors bit for bit, the same config.json, the same logits.

mlx-lm runs in the Python that made the golden models, .venv-golden, or PARALLM_GOLDEN_PYTHON.
"""
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from serving import ROOT, binary, model, on_a_terminal

GOLDEN = Path(os.environ.get("PARALLM_GOLDEN", ROOT / "build" / "golden"))
PYTHON = os.environ.get("PARALLM_GOLDEN_PYTHON", str(ROOT / ".venv-golden" / "bin" / "python"))
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")


def command(source, target, *flags):
    return [Path(binary()).with_name("mlx_parallm"), "convert", "--hf-path", source, "--mlx-path", target, *flags]


def convert(source, target, *flags, check=True):
    done = subprocess.run(command(source, target, *flags), capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def flags_of(arguments):
    """mlx_lm.convert.convert's arguments as flags."""
    flags = []
    for name, value in arguments.items():
        flags += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
    return flags


def read(file):
    """name -> (dtype, shape, bytes)."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__")["format"] == "mlx"
    data = memoryview(data)[8 + size :]
    return {name: (entry["dtype"], entry["shape"], bytes(data[slice(*entry["data_offsets"])])) for name, entry in header.items()}


def tensors(folder):
    """All tensors, which must be those that the index names, and the index's sizes."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    out = {}
    for file in sorted(set(index["weight_map"].values())):
        for name, tensor in read(folder / file).items():
            assert index["weight_map"][name] == file
            out[name] = tensor
    assert out.keys() == index["weight_map"].keys()
    return out, index["metadata"]


def layer_kinds(config, stored):
    """config.json's quantization for each quantized layer; None where it fits no tensor and a loader has to infer it."""
    table = config.pop("quantization", None)
    assert config.pop("quantization_config", None) == table
    if table is None:
        return {}
    usual = {name: table[name] for name in ("group_size", "bits", "mode") if name in table}
    kinds = {}
    for name in stored:
        if name.endswith(".scales"):
            layer = name.removesuffix(".scales")
            kind = {"mode": "affine", "group_size": 64, **table.get(layer, usual)}
            # A loader asks for it where a layer is named at all, else it sees the tensor.
            assert kind.pop("global_scale", False) in (False, f"{layer}.global_scale" in stored)
            groups, words = (stored[f"{layer}.{part}"][1][-1] for part in ("scales", "weight"))
            kinds[layer] = kind if kind["group_size"] * kind["bits"] * groups == words * 32 else None
    assert all(layer in kinds for layer, kind in table.items() if isinstance(kind, dict))
    return kinds


def same(ours, theirs):
    mine, my_sizes = tensors(ours)
    wanted, sizes = tensors(theirs)
    assert mine.keys() == wanted.keys()
    for name in wanted:
        assert mine[name][:2] == wanted[name][:2], name
        assert mine[name][2] == wanted[name][2], f"{name}: other bytes"
    assert my_sizes["total_size"] == sizes["total_size"]
    # mlx-lm leaves out what a module holds beside its layers (A_log, sinks, ...).
    assert my_sizes["total_parameters"] >= sizes["total_parameters"]
    config, reference = (json.loads((folder / "config.json").read_text()) for folder in (ours, theirs))
    if "quantization" not in reference:  # mlx-lm leaves what another tool said of what is dequantized now
        reference.pop("quantization_config", None)
    kinds, known = layer_kinds(config, mine), layer_kinds(reference, wanted)
    assert None not in kinds.values()
    assert {layer: kind or kinds[layer] for layer, kind in known.items()} == kinds
    if "text_config" in config:  # mlx-lm writes its own defaults into it
        reference["text_config"] = config["text_config"]
    assert config == reference


# name: (golden model, arguments)
CASES = {
    "as it is": ("llama", {}),
    "shards": ("llama_sharded", {}),
    "group 64 leaves odd layers": ("llama", {"quantize": True}),
    "biases": ("llama_biases", {"quantize": True, "q_group_size": 32, "q_bits": 8}),
    "bfloat16": ("llama_head_dim", {"quantize": True, "q_group_size": 32}),
    "float32": ("llama_mha", {"quantize": True, "q_group_size": 32, "q_bits": 6}),
    "cast": ("llama", {"dtype": "bfloat16"}),
    "cast and quantize": ("llama_biases", {"dtype": "float32", "quantize": True, "q_group_size": 32}),
    "partly quantized": ("llama_quantized_mixed", {"quantize": True, "q_group_size": 32, "q_bits": 3}),
    "cast codes": ("llama_quantized_mixed", {"dtype": "bfloat16"}),
    "cast all but decays": ("kimi_k3", {"dtype": "bfloat16"}),
    "cast all but hyper-connections": ("deepseek_v41", {"dtype": "float32"}),
    "cast routers' biases": ("dots1", {"dtype": "float32"}),
    "mxfp4 experts": ("kimi_k3_mxfp4", {}),
    "published names": ("deepseek_v41_text", {}),
    "float8 and 4-bit to bfloat16": ("deepseek_v41_text", {"dequantize": True}),
    "awq": ("llama_awq", {}),
    "float awq": ("llama_awq", {"dequantize": True}),
    "float affine": ("llama_quantized_4", {"dequantize": True}),
    "float mxfp8": ("llama_mxfp8", {"dequantize": True}),
    "float nvfp4": ("llama_nvfp4", {"dequantize": True}),
    "float mxfp4": ("llama_mxfp4", {"dequantize": True}),
    "float8": ("deepseek_v3_fp8", {}),
    "quant_method mxfp4": ("gpt_oss_hf", {}),
    "float gpt-oss": ("gpt_oss_hf", {"dequantize": True}),
    "whole latents": ("deepseek_v2", {}),
    "whole 4-bit latents": ("deepseek_v2-4bit", {}),
    "float latents": ("deepseek_v2-4bit", {"dequantize": True}),
    "whole 4-bit DeltaNet": ("qwen3_next-4bit", {}),
    "mistral": ("mistral", {"quantize": True, "q_group_size": 32}),
}
# Llama's ternary layers become codes of 2 bits, mlx-lm leaves them packed as they are.
OTHER_CODES = ("llama_bitnet",)
# mlx-lm fails to quantize them.
FLOATS = ("afm7",)
# Every other architecture converts, under the names and rules that mlx-lm has for it.
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json") if not path.parent.name.endswith("-4bit"))
STORED = [name for name in FOLDERS if name not in OTHER_CODES]
QUANTIZE = {"quantize": True, "q_group_size": 32}
CASES |= {f"all: {name}": (name, {} if name in FLOATS else QUANTIZE) for name in STORED}
CASES |= {f"{b} bits": ("llama", {"quantize": True, "q_group_size": 32, "q_bits": b}) for b in (2, 3, 4, 5, 6, 8)}
CASES |= {mode: ("llama", {"quantize": True, "q_mode": mode}) for mode in ("mxfp4", "mxfp8", "nvfp4")}
CASES |= {recipe: ("llama", {"quantize": True, "quant_predicate": recipe, "q_group_size": 32}) for recipe in RECIPES}


# GGUF files of tiny models, one an architecture. Four are none that mlx-lm would have: they have fewer layers than one
# of each kind (cohere2, gemma3), or no output layer (glm4, qwen2moe).
NAMED = sorted(path.stem for path in (ROOT / "tests" / "golden" / "gguf_names").glob("*.json"))
NAMED = [name for name in NAMED if name not in ("cohere2", "gemma3", "glm4", "qwen2moe")]


def with_merges(source, target):
    """A tokenizer of that kind must have merges. An entry of 64 bytes keeps all else in its place, 64 bytes further."""
    data, key, merge = source.read_bytes(), b"tokenizer.ggml.merges", b"aaaaa bbbbb"
    entry = struct.pack("<Q21sIIQQ11s", len(key), key, 9, 8, 1, len(merge), merge)
    assert len(entry) == 64
    target.write_bytes(data[:16] + struct.pack("<Q", int.from_bytes(data[16:24], "little") + 1) + entry + data[24:])


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    for name in NAMED:
        with_merges(ROOT / "tests" / "golden" / "gguf_names" / f"{name}.gguf", folder / f"{name}.gguf")
        convert(folder / f"{name}.gguf", folder / name, "--dtype", "float32")
    return folder


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    """The default model as folders: by ours, by tools/gguf_to_mlx.py; and in floats."""
    folder = tmp_path_factory.mktemp("smol")
    convert(model(), folder / "ours")
    subprocess.run([PYTHON, ROOT / "tools" / "gguf_to_mlx.py", model(), folder / "tool"], check=True)
    convert(folder / "tool", folder / "floats", "--dequantize")
    return folder


def gemma3():
    """A file of many kinds (tools/model.sh gemma3), Q6_K among them, whose groups of 16 MLX doesn't have."""
    if path := os.environ.get("PARALLM_TEST_GEMMA3"):
        return path
    return subprocess.check_output([ROOT / "tools" / "model.sh", "gemma3"], text=True).splitlines()[-1]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    said = convert(gemma3(), folder / "out", "--dtype", "float32").stderr
    assert "9 layers are quantized in a way that MLX has not: they are floats now" in said
    return folder / "out"


@pytest.fixture(scope="module")
def reference(smol, gemma, named, tmp_path_factory):
    """mlx-lm's outputs by case, all made in one process; and the logits of folders."""
    folder = tmp_path_factory.mktemp("mlx_lm")
    jobs = []
    for name, (golden, arguments) in CASES.items():
        source = folder / "sources" / golden
        if not source.exists():
            shutil.copytree(GOLDEN / golden, source, ignore=shutil.ignore_patterns("reference*", "made-from"))
            for file in ("tokenizer.json", "tokenizer_config.json"):  # without one mlx-lm opens no model
                shutil.copy(smol / "tool" / file, source)
        jobs.append([str(source), str(folder / name), arguments])
    jobs.append([str(smol / "floats"), str(folder / "smol mixed"), {"quantize": True, "quant_predicate": "mixed_2_6", "q_group_size": 64}])
    work = folder / "jobs.json"
    logits = [str(smol / "ours"), str(smol / "tool"), str(gemma)]
    names = [[str(named / name), str(ROOT / "tests" / "golden" / "gguf_names" / f"{name}.json")] for name in NAMED]
    work.write_text(json.dumps({"convert": jobs, "logits": logits, "named": names}))
    done = subprocess.run([PYTHON, Path(__file__).with_name("mlx_lm_convert.py"), work], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_equals_mlx_lm(name, reference, tmp_path):
    folder, _ = reference
    golden, arguments = CASES[name]
    convert(folder / "sources" / golden, tmp_path / "out", *flags_of(arguments))
    same(tmp_path / "out", folder / name)


def test_the_default_model_with_a_recipe_equals_mlx_lm(smol, reference, tmp_path):
    convert(smol / "floats", tmp_path / "out", "-q", "--quant-predicate", "mixed_2_6")
    same(tmp_path / "out", reference[0] / "smol mixed")


def test_a_gguf_file_opens_in_mlx_lm_with_equal_ids_and_logits(smol, reference):
    ours, tool, _ = reference[1][0]
    assert ours == tool
    assert tensors(smol / "ours")[0] == read(smol / "tool" / "model.safetensors")


def test_each_architecture_of_gguf_files_opens_in_mlx_lm_with_equal_logits(reference):
    assert reference[1][1] == [0] * len(NAMED)


def test_groups_of_16_become_floats_with_which_mlx_lm_gives_llama_cpps_logits(gemma, reference):
    """The ids too: BOS comes from tokenizer.json. And mlx-lm stops where a turn ends, which the file has no field for."""
    recorded = json.loads((ROOT / "tests" / "golden" / "gemma3_q4_k_m.json").read_text())["prompts"][0]
    ids, logits = reference[1][0][2]
    assert recorded["text"] == "The capital of France is"
    assert ids == recorded["prompt"]
    for id, value in recorded["best"][0]:
        assert abs(logits[id] - value) < 0.03
    assert json.loads((gemma / "config.json").read_text())["eos_token_id"] == [1, 106]


def test_groups_of_16_are_quantized_anew_if_asked(tmp_path):
    said = convert(gemma3(), tmp_path / "out", "-q", "--q-bits", "8").stderr
    assert "9 layers are quantized in a way that MLX has not: they were quantized anew" in said
    stored, _ = tensors(tmp_path / "out")
    assert not [name for name in stored if name.endswith("_proj.weight") and stored[name][0] != "U32"]
    texts = [
        subprocess.run(
            [Path(binary()).with_name("mlx_parallm"), "generate", "--model-path", path, "--kv-cache-memory", "256MB",
             "--max-tokens", "7", "The capital of France is"], capture_output=True, text=True, timeout=120, check=True).stdout
        for path in (gemma3(), tmp_path / "out")
    ]
    assert texts[0] == texts[1] == " the capital of the country of France\n"


def test_what_is_converted_answers(smol, tmp_path):
    convert(smol / "floats", tmp_path / "out", "-q", "--q-bits", "8")
    for folder in (smol / "ours", tmp_path / "out"):
        done = subprocess.run(
            [Path(binary()).with_name("mlx_parallm"), "generate", "--model-path", folder, "--kv-cache-memory", "256MB",
             "--chat", "What is the capital of France?"], capture_output=True, text=True, timeout=120)
        assert done.stdout == "The capital of France is Paris.\n", done.stderr


def test_files_go_along(reference, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(reference[0] / "sources" / "llama", source)
    for name in ("chat_template.jinja", "generation_config.json", "LICENSE", "vocab.txt", "model.safetensors.bak"):
        (source / name).write_text('{"eos_token_id": [7, 5]}' if name == "generation_config.json" else name)
    (source / "hf_quant_config.json").write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("rag")
    convert(source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
                     "chat_template.jinja", "generation_config.json", "LICENSE", "vocab.txt", "additional_chat_templates"}
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text() == "rag"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [5, 7]


def test_memory_holds_a_tensor_not_the_model(smol, tmp_path):
    """The peak of resident memory, the mapped source included (ru_maxrss of the process)."""
    size = (smol / "floats" / "model.safetensors").stat().st_size
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);" \
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code, *command(smol / "floats", tmp_path / "out", "-q")], capture_output=True, text=True, check=True)
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    print(f"peak {peak / 1e6:.0f} MB of {size / 1e6:.0f} MB of weights")
    assert peak < size / 2


def test_a_target_that_exists_is_refused_and_a_failure_leaves_nothing(smol, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("kept")
    done = convert(smol / "ours", target, check=False)
    assert done.returncode == 1 and "exists already" in done.stderr
    assert [path.name for path in target.iterdir()] == ["mine"]
    (target / "mine").unlink()
    convert(smol / "ours", str(target) + "/")  # empty: may be filled
    assert (target / "config.json").exists()

    broken = tmp_path / "broken"
    shutil.copytree(smol / "ours", broken)
    with open(broken / "model.safetensors", "r+b") as file:
        file.truncate(1 << 20)
    done = convert(broken, tmp_path / "never", check=False)
    assert done.returncode == 1 and "model.safetensors" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--q-bits", "4"), "--quantize"),
        (("-q", "--q-bits", "7"), "bits"),
        (("-q", "--q-mode", "mxfp4", "--q-group-size", "64"), "group_size"),
        (("-q", "--q-mode", "nf4"), "--q-mode"),
        (("-q", "--q-mode", "mxfp8", "--quant-predicate", "mixed_2_6"), "mixed_2_6"),
        (("-q", "--quant-predicate", "mixed_1_2"), "--quant-predicate"),
        (("-q", "-d"), "--dequantize"),
        (("--dtype", "float8"), "--dtype"),
        (("--no-such-flag",), "no-such-flag"),
    ],
)
def test_bad_flags_are_named(smol, tmp_path, flags, named):
    done = convert(smol / "ours", tmp_path / "out", *flags, check=False)
    assert done.returncode != 0 and named in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_terminal_sees_a_bar_and_a_log_sees_lines(smol, tmp_path):
    seen, _ = on_a_terminal(command(smol / "ours", tmp_path / "out"))
    assert b"\r[" in seen and b"100% of 0.10 GB" in seen and b"bits per weight" in seen
    said = convert(smol / "ours", tmp_path / "log").stderr
    assert "\r" not in said and "\x1b" not in said and "100% of 0.10 GB written\n" in said
