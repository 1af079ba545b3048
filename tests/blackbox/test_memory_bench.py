"""`mlx_parallm memory-bench`: what the default model answers from memories, held to what it has reached before."""
import json
import re
import subprocess
from pathlib import Path

import pytest

from serving import binary, model


def bench(*flags, status=0):
    command = [Path(binary()).with_name("mlx_parallm"), "memory-bench", "--model-path", model(), "--quiet", *flags]
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
    # Of 20 tokens a step, unlikely ones too; 3.3e-3 was measured.
    assert float(re.search(r"differ by (\S+) at most", said).group(1)) <= 1e-2


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
