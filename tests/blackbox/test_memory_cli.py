"""`mlx_parallm memory`: what it adds to a store a server answers from, and what it removes a running server forgets."""
import json
import subprocess
from pathlib import Path

import pytest

from serving import NAME, binary, model, on_a_terminal

DOOR = "The code of the blue door is 7392. Whoever wants to open the blue door types 7392."
RIVER = "The river Tesk is four hundred kilometres long, and it ends in a lake.\nNobody swims there."
QUESTION = "Somebody stands before the blue door of the old house by the river and asks for its code. The code of the blue door is"


def command(verb, store, *arguments):
    return [Path(binary()).with_name("mlx_parallm"), "memory", verb, "--store", f"files:{store}", *arguments]


def memory(verb, store, *arguments, status=0, **options):
    done = subprocess.run(command(verb, store, *arguments), capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == status, done.stderr
    return done


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One with two documents, which no test changes."""
    folder = tmp_path_factory.mktemp("memories")
    (folder / "door.txt").write_text(DOOR)
    (folder / "river.txt").write_text(RIVER)
    done = memory(
        "add", folder / "store", "--model-path", model(), "--metadata", "year=1999", "--metadata", "kind=note",
        "--metadata", 'code="7"', folder / "door.txt", folder / "river.txt")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["door.txt", "river.txt"]
    assert "2/2 documents" in done.stderr and "\r" not in done.stderr and "\x1b" not in done.stderr
    return folder / "store"


def test_list_and_namespaces_say_what_is_there(store):
    found = lines(memory("list", store, "--json"))
    assert [one["id"] for one in found] == ["door.txt", "river.txt"]
    assert found[0]["metadata"] == {"year": 1999, "kind": "note", "code": "7"}
    assert found[0]["n_tokens"] > 10 and found[0]["namespace"] == "default"
    assert [line.split()[0] for line in memory("list", store).stdout.splitlines()] == ["door.txt", "river.txt"]
    assert lines(memory("list", store, "--json", "--filter", '{"year": {"gt": 1999}}')) == []
    (space,) = lines(memory("namespaces", store, "--json"))
    assert space == {"id": "default", "documents": 2, "n_tokens": sum(one["n_tokens"] for one in found)}
    assert memory("namespaces", store).stdout.split()[0] == "default"


def test_query_finds_what_is_similar(store):
    found = lines(memory("query", store, "--model-path", model(), "--json", "What is the code of the blue door?"))
    assert [one["id"] for one in found] == ["door.txt", "river.txt"]
    assert found[0]["text"] == DOOR and 1 >= found[0]["similarity"] > found[1]["similarity"] >= -1
    (line,) = memory("query", store, "--model-path", model(), "--top-k", "1", "How long is the river Tesk?").stdout.splitlines()
    similarity, name, excerpt = line.split("  ")
    assert name == "river.txt" and -1 <= float(similarity) <= 1
    assert RIVER.replace("\n", " ").startswith(excerpt)


def answer(server, namespace="a"):
    body = {"model": NAME, "prompt": QUESTION, "temperature": 0, "max_tokens": 8, "memory": {"namespaces": [namespace]}}
    got = server.post("/v1/completions", body)
    return got.json()["choices"][0]["text"] if got.status_code == 200 else got.json()["error"]["message"]


def test_a_server_answers_from_what_was_added_and_forgets_what_was_removed(tmp_path, start):
    store = tmp_path / "store"
    memory("add", store, "--model-path", model(), "--namespace", "a", "--id", "door", "-", input=DOOR)
    memory("add", store, "--model-path", model(), "--namespace", "a", "--id", "other", "--quiet", "-", input=RIVER)
    with start("--use-extended-mind", "--memory-store", f"files:{store}") as server:
        assert "7392" in answer(server)
        reads = [line for line in server.log.splitlines() if "is read again" in line]
        assert reads == []  # the keys and values of the command are the server's
        memory("rm", store, "--namespace", "a", "door")
        assert "7392" not in answer(server)
        listed = server.http.get("/v1/memories?namespace=a").json()["data"]
        assert [one["id"] for one in listed] == ["other"]
        memory("add", store, "--model-path", model(), "--namespace", "a", "--id", "door", "-", input=DOOR.replace("7392", "5108"))
        assert "5108" in answer(server)  # and what is added while it runs


def test_rm_takes_ids_a_filter_or_all(tmp_path):
    store = tmp_path / "store"
    names = []
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"The box number {i} is full of sand.")
        names.append(tmp_path / f"{i}.txt")
    flags = ("--model-path", model(), "--quiet", "--pack", "--header", "About boxes:\n")
    done = memory("add", store, *flags, "--json", "--metadata", "kept=false", *names[:3])
    assert [one["id"] for one in lines(done)] == ["0.txt", "1.txt", "2.txt"] and done.stderr == ""
    memory("add", store, *flags, "--metadata", "kept=true", *names[3:])
    assert "2.txt" not in memory("list", store, "--filter", '{"kept": true}').stdout

    done = memory("rm", store, "0.txt", "nobody", status=1)
    assert "nobody" in done.stderr and "1 removed" in done.stderr
    assert "2 removed" in memory("rm", store, "--filter", '{"kept": false}').stderr
    assert [one["id"] for one in lines(memory("list", store, "--json"))] == ["3.txt", "4.txt"]
    assert "--all" in memory("rm", store, status=1).stderr
    assert "2 removed" in memory("rm", store, "--all").stderr
    assert memory("list", store).stdout == memory("namespaces", store).stdout == ""


def test_a_terminal_sees_a_bar(tmp_path):
    (tmp_path / "long.txt").write_text(" ".join(f"Room {i} is empty." for i in range(400)))
    windows = ("--stride", "256", "--max-length", "512")
    seen, said = on_a_terminal(command("add", tmp_path / "store", "--model-path", model(), *windows, tmp_path / "long.txt"))
    assert b"\r[" in seen and b"1/1 documents" in seen and b"tokens/s" in seen
    assert said.startswith(b"long.txt: ")


def add_flags(*files):
    return ("add", "--model-path", "no-such-model-is-needed", *files)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (add_flags("no/such/file.txt"), "no/such/file.txt"),
        (add_flags("empty.txt"), "empty.txt is empty"),
        (add_flags("latin.txt"), "latin.txt is no UTF-8"),
        (add_flags("good.txt", "good.txt", "--id", "one"), "--id"),
        (add_flags("good.txt", "--metadata", "novalue"), "key=value"),
        (add_flags("good.txt", "--stride", "0"), "--stride"),
        (add_flags(), "files"),
        (("add", "good.txt"), "--model-path"),
        (("list", "--namespace", "nobody"), "nobody"),
        (("list", "--filter", "year"), "--filter"),
        (("rm", "--namespace", "nobody", "id"), "nobody"),
        (("rm", "id", "--all"), "--all"),
        (("query", "--model-path", "m"), "text"),
        (("forget",), "subcommand is required"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, named):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "good.txt").write_text("good")
    verb, *rest = arguments
    done = subprocess.run(command(verb, "store", *rest), capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode not in (0, -11, -6) and named in done.stderr, done.stderr


def test_two_files_of_one_name_and_no_replace_are_refused(tmp_path, store):
    (tmp_path / "door.txt").write_text(DOOR)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "door.txt").write_text(DOOR)
    flags = ("--model-path", model(), "--quiet")
    done = memory("add", tmp_path / "store", *flags, tmp_path / "door.txt", tmp_path / "b" / "door.txt", status=1)
    assert "door.txt" in done.stderr
    done = memory("add", store, *flags, "--no-replace", tmp_path / "door.txt", status=1)
    assert "door.txt is there already" in done.stderr


def test_help_names_every_verb_and_flag():
    program = Path(binary()).with_name("mlx_parallm")
    said = subprocess.run([program, "memory", "--help"], capture_output=True, text=True).stdout
    assert all(verb in said for verb in ("add", "list", "rm", "query", "namespaces"))
    for verb, flags in {
        "add": ("--store", "--namespace", "--model-path", "--id", "--metadata", "--header", "--pack", "--stride", "--max-length"),
        "list": ("--store", "--namespace", "--json", "--filter"),
        "rm": ("--store", "--namespace", "--all", "--filter"),
        "query": ("--store", "--namespace", "--model-path", "--top-k", "--json"),
        "namespaces": ("--store", "--json"),
    }.items():
        said = subprocess.run([program, "memory", verb, "--help"], capture_output=True, text=True)
        assert said.returncode == 0 and all(flag in said.stdout for flag in flags), verb
