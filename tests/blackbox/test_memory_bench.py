"""`mlx_parallm memory-bench`: what the default model answers from memories, held to what it has reached before."""
import json
import re
import subprocess
from pathlib import Path

import pytest

from serving import binary, model


def bench(*flags, status=0, path=None):
    command = [Path(binary()).with_name("mlx_parallm"), "memory-bench", "--model-path", path or model(), "--quiet", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done


def tables(text):
    """Each table's rows, {column: cell}, the row's name under ""."""
    out = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        names, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        out.append({row[0]: dict(zip(names, row)) for row in rows})
    return out


def test_answers_come_from_memories_and_their_sources_are_cited(tmp_path):
    flags = "--dtype float32 --facts 40 --top-k 16 --lengths 0 --timed 1"
    said = bench(*flags.split(), "--result", tmp_path / "result.md").stdout
    assert (tmp_path / "result.md").read_text() == said
    (rows,) = tables(said)
    exact = {name: float(row["exact"]) for name, row in rows.items()}
    assert exact["no memory"] == 0
    assert exact["the same texts in the prompt"] >= 0.7
    for name in ("zero, k = 16", "contiguous, k = 16"):
        assert exact[name] >= 0.6
        assert float(rows[name]["citation@1"]) >= 0.9
        assert float(rows[name]["log-probability"]) > float(rows["no memory"]["log-probability"]) + 1
    # Of 20 tokens a step, unlikely ones too. Layers of 4 bits: what rounding alone makes, 2.9e-3 measured.
    difference, rounding = differences(said)
    assert difference <= 1e-2
    assert difference <= 3 * rounding


def differences(said):
    """Of contiguous memories to the prompt, and of the prompt to itself at later positions."""
    return [float(re.search(rf"{words}\s+(\d\S+?)(?= at most|\.\s)", said).group(1)) for words in ("differ by", "from itself by")]


def test_contiguous_memories_with_float_layers_are_the_text_in_the_prompt(tmp_path):
    cli = Path(binary()).with_name("mlx_parallm")
    floats = tmp_path / "floats"
    subprocess.run([cli, "convert", "--model-path", model(), "--mlx-path", floats, "-d", "--dtype", "float32"], check=True, capture_output=True)
    flags = "--dtype float32 --facts 40 --top-k all --position contiguous --lengths 0 --timed 1"
    difference, rounding = differences(bench(*flags.split(), path=floats).stdout)
    assert 0 < rounding <= 1e-3
    assert difference <= 1e-3  # 2.7e-5 measured


def test_memories_in_8_bits_take_about_half_and_are_known_as_well():
    flags = "--facts 40 --top-k 16 --lengths 0 --timed 1"
    (wide,) = tables(bench(*flags.split()).stdout)
    said = bench(*flags.split(), "--kv-bits", "8").stdout
    (narrow,) = tables(said)
    assert "keys and values 8-bit" in said
    for name in ("zero, k = 16", "contiguous, k = 16"):
        assert float(narrow[name]["exact"]) >= 0.6
        assert float(narrow[name]["citation@1"]) >= 0.9
        # 0.01 was measured.
        assert abs(float(narrow[name]["log-probability"]) - float(wide[name]["log-probability"])) <= 0.05
        assert float(narrow[name]["MB"]) <= 0.63 * float(wide[name]["MB"])  # of tenths


# The layout of wikiqa-edited.json, other keys too.
WIKIQA = [
    {
        "split": split, "prompt": "Answer from the document.", "document": "", "original_eval": "rome", "n_replacements": 1,
        "question": f"Question: What is the capital of {name}?", "answer": answer,
        "context": f"Document: {name.lower()} is a country by the sea. the capital of {name.lower()} is {city}. it is warm there.",
    }
    for split, name, city, answer in [
        ("2k", "Veldoria", "marnath", "Marnath"),
        ("2k", "Italy", "tokyo", ["Tokyo", "edo"]),
        ("4k", "Tesk", "orlanta", "orlanta"),
        ("4k", "Spain", "dublin", "no such answer"),
    ]
]


def test_wikiqa_is_scored_by_split(tmp_path):
    file = tmp_path / "wikiqa-edited.json"
    file.write_text(json.dumps(WIKIQA))
    (rows,) = tables(bench("--wikiqa", file, "--top-k", "12,all").stdout)
    assert list(rows) == [
        "no document", "document in the prompt", *(f"memories, {p}, k = {k}" for p in ("zero", "contiguous") for k in (12, "all"))]
    assert rows["no document"] == {"": "no document", "2k (2)": "0.00", "4k (2)": "0.00", "mean": "0.00", "too long": "0"}
    for name in ("document in the prompt", "memories, contiguous, k = all"):
        assert (rows[name]["2k (2)"], rows[name]["4k (2)"], rows[name]["mean"]) == ("100.00", "50.00", "75.00")
    (rows,) = tables(bench("--wikiqa", file, "--limit", "1", "--position", "zero", "--max-context-length", "150").stdout)
    assert list(rows["no document"]) == ["", "2k (1)", "4k (1)", "mean", "too long"]
    assert int(rows["document in the prompt"]["too long"]) == 2


@pytest.mark.parametrize(
    "content, named",
    [("{}", "JSON list"), ("[]", "no question"), ('[{"split": "2k"}]', '"prompt"'), ("[3]", "entry 0"), ("nonsense", "wikiqa.json")],
)
def test_a_file_of_another_layout_is_refused(tmp_path, content, named):
    (tmp_path / "wikiqa.json").write_text(content)
    assert named in bench("--wikiqa", tmp_path / "wikiqa.json", status=1).stderr


def test_flags_that_are_wrong_are_named():
    for flag, value in (("--top-k", "many"), ("--position", "middle"), ("--keep-as", "soup"), ("--facts", "0")):
        command = [Path(binary()).with_name("mlx_parallm"), "memory-bench", "--model-path", "m", flag, value]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode > 1 and flag in done.stderr
