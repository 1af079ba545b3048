"""`mlx_parallm generate`, the command beside the server: it must give what the server gives."""
import json
import subprocess
from pathlib import Path

import pytest

from serving import binary, model, on_a_terminal

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def command(*arguments):
    program = Path(binary()).with_name("mlx_parallm")
    return [program, "generate", "--model-path", model(), "--kv-cache-memory", "256MB", *arguments]


def generate(*arguments, stdin="", check=True):
    done = subprocess.run(command(*arguments), input=stdin, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_one_prompt_is_its_text():
    assert generate("--chat", QUESTION).stdout == ANSWER + "\n"


def test_prompts_as_arguments_a_file_and_standard_input(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{QUESTION}\n\n{QUESTION}\n")
    expected = f"==> prompt 1\n{ANSWER}\n==> prompt 2\n{ANSWER}\n"
    assert generate("--chat", QUESTION, QUESTION).stdout == expected
    assert generate("--chat", "--file", str(file)).stdout == expected
    assert generate("--chat", stdin=file.read_text()).stdout == expected


def test_jsonl_in_and_out(tmp_path):
    out = tmp_path / "out.jsonl"
    lines = [json.dumps({"prompt": QUESTION, "id": 7}), json.dumps("Count to three.\nGo.")]
    generate("--chat", "--input-format", "jsonl", "--format", "jsonl", "--max-tokens", "12", "--output", str(out), stdin="\n".join(lines))
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["index"] for r in results] == [0, 1]
    assert [r["prompt"] for r in results] == [QUESTION, "Count to three.\nGo."]
    assert results[0]["text"] == ANSWER and results[0]["finish_reason"] == "stop"
    assert results[1]["finish_reason"] == "length" and results[1]["completion_tokens"] == 12


def test_many_prompts_keep_their_order_and_text():
    prompts = [f"Name {n} animals." for n in range(2, 82)]
    flags = ("--chat", "--format", "jsonl", "--max-tokens", "8", "--max-batch-size", "16")
    together = [json.loads(line) for line in generate(*flags, stdin="\n".join(prompts)).stdout.splitlines()]
    assert [r["prompt"] for r in together] == prompts
    alone = json.loads(generate(*flags, prompts[40]).stdout)
    assert together[40]["text"] == alone["text"]


def test_a_prompt_that_does_not_fit_fails_alone():
    done = generate("--format", "jsonl", "--max-context-length", "64", "--max-tokens", "8", stdin="short\n" + "long " * 100 + "\nalso short\n", check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [r["finish_reason"] for r in results] == ["length", "error", "length"]
    assert "64" in results[1]["error"] and "prompt 2" in done.stderr


def test_a_seed_gives_the_same_texts():
    flags = ("--format", "jsonl", "--temperature", "1", "--max-tokens", "12", "--ignore-eos")
    texts = lambda seed: [json.loads(line)["text"] for line in generate(*flags, "--seed", seed, "Once", "Once").stdout.splitlines()]
    first = texts("5")
    assert first == texts("5") != texts("6")
    assert first[0] != first[1]


def test_a_terminal_sees_a_progress_bar():
    seen, said = on_a_terminal(command("--max-tokens", "8", "One", "Two", "Three"))
    assert b"/3 prompts" in seen and b"tokens/s" in seen and b"left" in seen
    assert b"\x1b[K" in seen
    assert b"\x1b" not in said


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("--temperature", "-1", "x"), "temperature"),
        (("--top-p", "0", "x"), "top_p"),
        (("--input-format", "jsonl", "--file", "-"), "no prompt"),
        (("--file", "/no/such/file"), "/no/such/file"),
        (("--no-such-flag", "x"), "no-such-flag"),
    ],
)
def test_bad_flags_are_named(arguments, named):
    done = generate(*arguments, check=False)
    assert done.returncode != 0
    assert named in done.stderr + done.stdout
