"""Models of the Hugging Face hub: ours and Python's huggingface_hub on one cache, against a hub of this machine."""
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_hub import TOKEN, FakeHub, Fault, Proxy, Repo, etag_of, running
from serving import NAME, ROOT, Server, binary, on_a_terminal

GOLDEN = Path(os.environ.get("PARALLM_GOLDEN", ROOT / "build" / "golden"))
COMMIT = "a" * 40
BIG = random.Random(1).randbytes(3_000_000)
BIG_PATH = "/" + etag_of("model.safetensors", BIG)


def tokenizer_json():
    """Bytes as tokens, as many as the tiny models' vocabulary of 96 has room for."""
    vocab = {chr(c): c - 0x21 + 3 for c in range(0x21, 0x7B)} | {"Ġ": 93, "<s>": 1, "</s>": 2}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, t in ((1, "<s>"), (2, "</s>"))]  # fmt: skip
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []}  # fmt: skip
    shape = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    return json.dumps(shape | {"pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}).encode()


def tiny(folder="llama_mha"):
    """A model that loads, and beside it what must not be fetched."""
    files = {p.name: p.read_bytes() for p in sorted((GOLDEN / folder).iterdir()) if p.name not in ("reference.safetensors", "made-from")}
    unwanted = ("pytorch_model.bin", "original/consolidated.00.pth", "original/params.json", "onnx/model.onnx", "README.md",
                "modeling_x.py", ".gitattributes", "consolidated.safetensors", "model.fp16.safetensors", "w-Q4_K_M.gguf")  # fmt: skip
    return files | {"tokenizer.json": tokenizer_json()} | {name: b"no" for name in unwanted}


def large():
    return {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": BIG}


@pytest.fixture
def hub():
    repos = {
        "org/tiny": Repo(tiny()),
        "org/sharded": Repo(tiny("llama_sharded")),
        "org/big": Repo(large()),
        "org/gated": Repo(large(), gated=True),
        "org/private": Repo(large(), private=True),
        "org/renamed": Repo({}, moved_to="org/tiny"),
        "org/mirrored": Repo(tiny(), blobs=False),
        "org/pickled": Repo({"config.json": b"{}", "pytorch_model.bin": b"x"}),
        "org/gguf": Repo({"m-Q4_K_M.gguf": b"four", "m-Q8_0.gguf": b"eight", "m-IQ4_XS.gguf": b"i", "m-Q4_XS.gguf": b"q"}),
    }
    with running(FakeHub(repos)) as started:
        yield started


@pytest.fixture
def env(hub, tmp_path):
    """Of both clients: one cache, this hub, nothing of the machine's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    return kept | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}


def command(name, *flags):
    return [Path(binary()).with_name("mlx_parallm"), "download", name, *flags]


def ours(name, env, check=True, timeout=60, **more):
    done = subprocess.run(command(name), env=env | more, capture_output=True, text=True, timeout=timeout)
    if check:
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and done.stdout == "", done
    assert len(done.stderr.splitlines()[-1]) > 20 and done.stderr.splitlines()[-1].startswith("error: ["), done.stderr
    return done.stderr


def theirs(name, env, **options):
    """huggingface_hub's snapshot_download in a process of its own."""
    code = "import sys, json, huggingface_hub as h; print(h.snapshot_download(sys.argv[1], **json.loads(sys.argv[2])))"
    done = subprocess.run([sys.executable, "-c", code, name, json.dumps(options)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def storage(env, name="org/big"):
    return Path(env["HF_HOME"]) / "hub" / ("models--" + name.replace("/", "--"))


def assert_same(folder, files, names):
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(names)
    for name in names:
        assert (folder / name).read_bytes() == files[name], name


WANTED = ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_ours_fetched_is_there_for_theirs(hub, env):
    folder = ours("org/tiny", env)
    assert_same(folder, hub.repos["org/tiny"].files, WANTED)
    fetched = len(hub.content_gets())
    assert theirs("org/tiny", env, local_files_only=True) == folder
    assert theirs("org/tiny", env, allow_patterns=WANTED) == folder
    assert len(hub.content_gets()) == fetched
    scan = "import huggingface_hub as h; s = h.scan_cache_dir(); print(len(s.repos), s.warnings)"
    assert subprocess.check_output([sys.executable, "-c", scan], env=env, text=True) == "1 []\n"
    blobs = storage(env, "org/tiny") / "blobs"
    assert all((folder / name).is_symlink() and (folder / name).resolve().parent == blobs for name in WANTED)
    assert not os.readlink(folder / "config.json").startswith("/")
    assert (storage(env, "org/tiny") / "refs" / "main").read_text() == COMMIT
    assert not list(blobs.glob("*.incomplete"))


def test_ours_fetches_nothing_twice(hub, env):
    first = ours("org/sharded", env)
    seen = len(hub.seen)
    assert ours("org/sharded", env) == first
    assert [s.path for s in hub.seen[seen:]] == ["/api/models/org/sharded/revision/main"]
    assert ours(f"org/sharded@{COMMIT}", env) == first
    assert len(hub.seen) == seen + 1


# mlx_lm/utils.py's DEFAULT_ALLOW_PATTERNS
MLX_LM = ["*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl", "*.jinja"]


@pytest.mark.parametrize("options", [{}, {"allow_patterns": MLX_LM}], ids=["all", "as mlx-lm"])
def test_what_theirs_fetched_is_there_for_ours(hub, env, options):
    hub.repos["org/tiny"].files["chat_template.jinja"] = b"{{ messages }}"
    folder = theirs("org/tiny", env, **options)
    fetched = len(hub.content_gets())
    assert ours("org/tiny", env) == folder
    assert ours("org/tiny", env, HF_HUB_OFFLINE="1") == folder
    assert ours("org/tiny", env, HF_ENDPOINT="http://127.0.0.1:9") == folder  # the hub can't be reached
    assert len(hub.content_gets()) == fetched


def test_a_new_commit_fetches_what_changed_alone(hub, env):
    ours("org/big", env)
    repo = hub.repos["org/big"]
    repo.commit, repo.files = "b" * 40, large() | {"config.json": b'{"new": 1}'}
    before = len(hub.content_gets())
    folder = ours("org/big", env)
    assert folder.name == repo.commit and (folder / "config.json").read_bytes() == b'{"new": 1}'
    assert [s.path.rsplit("/", 1)[1] for s in hub.content_gets()[before:]] == ["config.json"]
    assert theirs("org/big", env, local_files_only=True) == folder


def test_branches_and_commits(hub, env):
    hub.repos["org/tiny"].branches = ("main", "refs/pr/1")
    folder = ours("org/tiny@refs/pr/1", env)
    assert (storage(env, "org/tiny") / "refs" / "refs/pr/1").read_text() == COMMIT
    assert theirs("org/tiny", env, revision="refs/pr/1", local_files_only=True) == folder
    assert "has no revision v9" in ours("org/tiny@v9", env, check=False)


def test_the_caches_variables(hub, env, tmp_path):
    cases = [
        ({"HF_HUB_CACHE": str(tmp_path / "a")}, tmp_path / "a"),
        ({"HUGGINGFACE_HUB_CACHE": str(tmp_path / "b")}, tmp_path / "b"),
        ({"HF_HUB_CACHE": "~/c", "HUGGINGFACE_HUB_CACHE": "/nowhere", "HOME": str(tmp_path)}, tmp_path / "c"),
        ({"HF_HOME": "$PLACE/d", "PLACE": str(tmp_path)}, tmp_path / "d" / "hub"),
        ({"HF_HOME": "", "XDG_CACHE_HOME": str(tmp_path / "e")}, tmp_path / "e" / "huggingface" / "hub"),
        ({"HF_HOME": "", "HOME": str(tmp_path / "f")}, tmp_path / "f" / ".cache" / "huggingface" / "hub"),
    ]
    for variables, place in cases:
        variables = env | variables
        if not variables["HF_HOME"]:
            del variables["HF_HOME"]
        folder = ours("org/tiny", variables)
        assert folder.is_relative_to(place), (variables, folder)
        assert theirs("org/tiny", variables, local_files_only=True) == folder


def test_a_cut_download_goes_on(hub, env):
    hub.faults[BIG_PATH] = Fault(cut=1_000_000, times=1)
    folder = ours("org/big", env)
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert [s.sent for s in hub.gets(port="cdn")] == [1_000_000, 2_000_000]
    assert hub.gets(port="cdn")[1].headers["range"] == "bytes=1000000-"


def test_another_process_goes_on_where_the_first_was_cut(hub, env):
    hub.faults[BIG_PATH] = Fault(cut=700_000, times=1)
    process = subprocess.Popen(command("org/big"), env=env, stderr=subprocess.PIPE, text=True)
    partial = storage(env) / "blobs" / f"{BIG_PATH[1:]}.incomplete"
    wait_until(lambda: partial.exists() and partial.stat().st_size == 700_000)
    process.send_signal(signal.SIGTERM)  # it waits for its second try
    assert process.wait(5) == -signal.SIGTERM
    assert partial.stat().st_size >= 700_000 and not (storage(env) / "snapshots").exists()
    ours("org/big", env)
    assert sum(s.sent for s in hub.gets(port="cdn")) == len(BIG)


def wait_until(true, limit=20):
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_what_came_stays(hub, env, number):
    hub.faults[BIG_PATH] = Fault(slow=500_000)
    # What a shell starts in the background ignores SIGINT: the tests themselves may be such a job.
    heed = lambda: signal.signal(number, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command("org/big"), env=env, stderr=subprocess.DEVNULL, preexec_fn=heed)
    partial = storage(env) / "blobs" / f"{BIG_PATH[1:]}.incomplete"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 200_000)
    process.send_signal(number)
    assert process.wait(3) == -number
    kept = partial.stat().st_size
    assert not (storage(env) / "snapshots").exists() or not list((storage(env) / "snapshots").rglob("model.safetensors"))
    folder = ours("org/big", env)
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert hub.gets(port="cdn")[-1].headers["range"] == f"bytes={kept}-"


def test_a_server_that_ignores_range_is_read_from_the_start(hub, env):
    hub.faults[BIG_PATH] = Fault(cut=1_000_000, times=2, no_range=True)
    folder = ours("org/big", env)
    assert (folder / "model.safetensors").read_bytes() == BIG


def test_remains_of_something_else_are_thrown_away(hub, env):
    blobs = storage(env) / "blobs"
    blobs.mkdir(parents=True)
    for size in (1000, len(BIG), len(BIG) + 5):
        (blobs / f"{BIG_PATH[1:]}.incomplete").write_bytes(b"z" * size)
        folder = ours("org/big", env)
        assert (folder / "model.safetensors").read_bytes() == BIG
        (blobs / BIG_PATH[1:]).unlink()
    (blobs / BIG_PATH[1:]).write_bytes(b"short")  # a blob of the wrong size, as a full disk leaves it
    assert (ours("org/big", env) / "model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("change", ["other", "longer"])
def test_wrong_content_is_refused_and_not_kept(hub, env, file, change):
    right = hub.repos["org/big"].files[file]
    wrong = bytes(reversed(right)) + (b"x" if change == "longer" else b"")
    hub.repos["org/big"].listing[file] = right
    hub.repos["org/big"].files[file] = wrong
    text = ours("org/big", env, check=False)
    assert f"{file} of org/big arrived twice as something else" in text
    assert not [p for p in storage(env).rglob("*") if p.is_file() and p.read_bytes() in (right, wrong)]
    assert not (storage(env) / "refs").exists()


def test_the_token_goes_to_the_hub_alone(hub, env):
    ours("org/private", env, HF_TOKEN=TOKEN)
    sent = {s.port: {t.headers.get("authorization") for t in hub.seen if t.port == s.port} for s in hub.seen}
    assert sent == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}


def test_where_the_token_comes_from(hub, env, tmp_path):
    login = Path(env["HF_HOME"]) / "token"
    login.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(f"{TOKEN}\n")
    assert "set HF_TOKEN" in ours("org/private", env, check=False)
    login.write_text("hf_old")
    text = ours("org/private", env, check=False)
    assert "refuses the token" in text and str(login) in text
    for variables in ({"HF_TOKEN": TOKEN}, {"HUGGING_FACE_HUB_TOKEN": TOKEN}, {"HF_TOKEN_PATH": str(elsewhere)}):
        ours("org/private", env | variables, HF_HUB_CACHE=str(tmp_path / list(variables)[0]))
    assert "may read it" in ours("org/private", env, check=False, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    login.write_text(TOKEN)
    ours("org/private", env)
    assert "control characters" in ours("org/private", env, check=False, HF_TOKEN="a\nX-Evil: 1")


def test_an_endpoint_needs_its_scheme(env):
    assert "HF_ENDPOINT must begin" in ours("org/big", env, check=False, HF_ENDPOINT="hub.example", HF_TOKEN=TOKEN)


def test_gated(hub, env):
    for variables in ({}, {"HF_TOKEN": TOKEN}):
        text = ours("org/gated", env, check=False, **variables)
        assert "org/gated is gated" in text and f"{hub.url}/org/gated" in text and "HF_TOKEN" in text


def test_refusals_say_what_to_do(hub, env):
    assert "has no model org/nothing" in ours("org/nothing", env, check=False)
    assert "path of its file or folder" in ours("org/nothing", env, check=False, HF_TOKEN=TOKEN)
    assert "never opened" in ours("org/pickled", env, check=False)
    assert "org/gguf/m-Q4_K_M.gguf" in ours("org/gguf", env, check=False)
    hub.faults["/tokenizer.json"] = Fault(status=403, headers={"X-Error-Message": "Your plan\x07 is over"}, times=9)
    text = ours("org/big", env, check=False)
    assert "does not let you read tokenizer.json" in text and "Your plan  is over" in text
    for name in ("nothing", "../org/big", "org/big/config.json", "org/big@", "org/big@../../x", "org--x/big", "a/b/c/d.safetensors"):
        assert "ORG/NAME" in ours(name, env, check=False)


def test_busy_and_failing_hubs_are_asked_again(hub, env):
    hub.faults["/revision/main"] = Fault(status=429, headers={"Retry-After": "2"})
    hub.faults["/config.json"] = Fault(status=503)
    hub.faults[BIG_PATH] = Fault(cut=0)
    start = time.monotonic()
    done = subprocess.run(command("org/big"), env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start > 3
    for said in ("status 429; trying again in 2 s", "config.json: status 503; trying again in 1 s", "model.safetensors: "):
        assert said in done.stderr


def test_a_hub_that_stays_busy(hub, env):
    hub.faults["/revision/main"] = Fault(status=429, headers={"Retry-After": "4000"}, times=9)
    text = ours("org/big", env, check=False)
    assert "try again in 4000 s" in text and len(hub.seen) == 1
    hub.faults["/revision/main"] = Fault(status=429, headers={"RateLimit": '"api";r=0;t=1'}, times=9)
    assert "answers no more requests" in ours("org/big", env, check=False)
    assert len(hub.seen) == 6


def test_a_cached_model_is_served_while_the_hub_fails(hub, env):
    folder = ours("org/big", env)
    for fault in (Fault(status=500, times=9), Fault(status=401, times=9), Fault(status=429, times=9)):
        hub.faults["/revision/main"] = fault
        done = subprocess.run(command("org/big"), env=env, capture_output=True, text=True, timeout=10)
        assert done.stdout.splitlines()[-1] == str(folder)
        assert f"status {fault.status}" in done.stderr and "may be older" in done.stderr


def test_offline_needs_a_whole_model(hub, env):
    text = ours("org/big", env, check=False, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in text and "not there" in text
    folder = ours("org/big", env)
    assert len(hub.seen) > 0
    hub.seen.clear()
    assert ours("org/big", env, HF_HUB_OFFLINE="yes") == folder
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    text = ours("org/big", env, check=False, HF_HUB_OFFLINE="1")
    assert "lacks *.safetensors, tokenizer.json" in text
    assert hub.seen == []
    assert ours(f"org/big@{COMMIT}", env) == folder  # a snapshot that lacks files is mended, of blobs that are there
    assert (folder / "model.safetensors").read_bytes() == BIG and not hub.content_gets()


def test_a_shard_that_is_missing_is_noticed(hub, env):
    folder = ours("org/sharded", env)
    (folder / "model-00002-of-00002.safetensors").unlink()
    text = ours("org/sharded", env, check=False, HF_HUB_OFFLINE="1")
    assert "model-00002-of-00002.safetensors" in text


def test_a_proxy_is_used_and_no_proxy_is_not(hub, env):
    with running(Proxy()) as proxy:
        ours("org/tiny", env, http_proxy=proxy.url)
        assert any(url.startswith(hub.cdn_url) for url in proxy.seen) and any("/api/models/" in url for url in proxy.seen)
        seen = len(proxy.seen)
        ours("org/big", env, http_proxy=proxy.url, no_proxy="127.0.0.1")
        assert len(proxy.seen) == seen
    done = subprocess.run(command("org/tiny"), env=env | {"http_proxy": proxy.url}, capture_output=True, text=True, timeout=20)
    assert "could not ask" in done.stderr  # the proxy is gone


def test_renamed_repositories_and_bare_listings(hub, env):
    folder = ours("org/renamed", env)
    assert_same(folder, hub.repos["org/tiny"].files, WANTED)
    folder = ours("org/mirrored", env)
    assert_same(folder, hub.repos["org/tiny"].files, WANTED)
    heads = [s.path.rsplit("/", 1)[1] for s in hub.seen if s.method == "HEAD"]
    assert sorted(heads) == WANTED
    assert theirs("org/mirrored", env, local_files_only=True) == folder


def test_tls_is_checked_and_kept(hub, env, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate]
    subprocess.run([*made, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    text_alone = {"config.json": b"{}", "tokenizer.json": b"[]"}
    with running(FakeHub({"org/big": Repo(large())}, context)) as secure:
        start = time.monotonic()
        assert "certificate" in ours("org/big", env, check=False, HF_ENDPOINT=secure.url)
        assert time.monotonic() - start < 1  # asking again would not help
        text = ours("org/big", env, check=False, HF_ENDPOINT=secure.url, SSL_CERT_FILE=str(certificate))
        assert "model.safetensors" in text and "is not followed" in text  # from https to http
        assert {s.path for s in secure.content_gets() if s.status == 200} == {f"/org/big/resolve/{COMMIT}/{n}" for n in text_alone}
        assert not secure.gets(port="cdn")


def test_a_cache_without_symbolic_links(hub, env):
    env["HF_HUB_DISABLE_SYMLINKS"] = "1"
    folder = ours("org/tiny", env)
    assert_same(folder, hub.repos["org/tiny"].files, WANTED)
    assert not any(p.is_symlink() for p in folder.iterdir())
    assert theirs("org/tiny", env, local_files_only=True) == folder
    fetched = len(hub.content_gets())
    assert ours("org/tiny", env) == folder and len(hub.content_gets()) == fetched


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\..\\evil.json", "a//b.json", ""])
def test_names_that_lead_out_are_refused(hub, env, name):
    hub.repos["org/big"].files[name] = b"x"
    assert "leads out of its folder" in ours("org/big", env, check=False)
    assert not hub.content_gets()


def test_a_commit_that_is_none_is_refused(hub, env):
    hub.repos["org/big"].commit = "../../../../evil"
    assert "no commit" in ours("org/big", env, check=False)


def test_gguf_files(hub, env):
    one = ours("org/gguf/m-Q8_0.gguf", env)
    assert one.name == "m-Q8_0.gguf" and one.read_bytes() == b"eight"
    assert ours("org/gguf:q4_k_m", env).read_bytes() == b"four"
    assert ours("org/gguf:Q4_XS@main", env).read_bytes() == b"q"
    assert ours("org/gguf:Q8_0", env, HF_HUB_OFFLINE="1") == one
    assert "it has m-Q4_K_M.gguf" in ours("org/gguf:Q5_0", env, check=False)
    assert "no GGUF file x.gguf" in ours("org/gguf/x.gguf", env, check=False)


def test_a_full_disk(hub, env, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr}")
    try:
        text = ours("org/big", env, check=False, HF_HUB_CACHE=str(place))
        assert "needs 3.0 MB more" in text and "HF_HUB_CACHE" in text and not hub.content_gets()
        filled_while_it_comes(hub, env, place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def filled_while_it_comes(hub, env, place):
    part = hub.repos["org/big"].files["model.safetensors"] = BIG[:1_500_000]
    hub.faults["/" + etag_of("model.safetensors", part)] = Fault(slow=1_000_000)
    process = subprocess.Popen(command("org/big"), env=env | {"HF_HUB_CACHE": str(place)}, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: hub.gets(port="cdn") and hub.gets(port="cdn")[0].sent > 0)
    with pytest.raises(OSError):
        (place / "ballast").write_bytes(b"x" * 3_000_000)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1 and "the disk is full" in text
    (place / "ballast").unlink()
    folder = ours("org/big", env, HF_HUB_CACHE=str(place))
    assert (folder / "model.safetensors").read_bytes() == part
    assert "range" in hub.gets(port="cdn")[-1].headers


def test_two_of_ours_at_once_fetch_once(hub, env):
    hub.faults[BIG_PATH] = Fault(slow=3_000_000, times=9)
    both = [subprocess.Popen(command("org/big"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum(s.sent for s in hub.gets(port="cdn")) == len(BIG)
    assert any("waiting for another process that is fetching model.safetensors" in err for _, err in results)
    assert (Path(results[0][0].strip()) / "model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("ours_first", [True, False])
def test_ours_and_theirs_at_once_fetch_once(hub, env, ours_first):
    hub.faults[BIG_PATH] = Fault(slow=2_000_000, times=9)
    python = "import huggingface_hub as h; print(h.snapshot_download('org/big'))"
    starts = [command("org/big"), [sys.executable, "-c", python]]
    both = []
    for start in starts if ours_first else reversed(starts):
        both.append(subprocess.Popen(start, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        wait_until(lambda: hub.gets(port="cdn") and hub.gets(port="cdn")[0].sent > 0, 60)
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert sum(s.sent for s in hub.gets(port="cdn")) == len(BIG)
    folder = Path(results[0][0].splitlines()[-1])
    assert folder == Path(results[1][0].splitlines()[-1])
    assert (folder / "model.safetensors").read_bytes() == BIG


def test_files_come_side_by_side(hub, env):
    hub.repos["org/big"].files |= {f"part-{i}.json": b"x" * 100_000 + bytes([i]) for i in range(4)}
    for i in range(4):
        hub.faults[f"/part-{i}.json"] = Fault(slow=100_000)
    start = time.monotonic()
    ours("org/big", env)
    assert time.monotonic() - start < 3  # each takes a second


def test_a_terminal_sees_a_bar_and_a_log_sees_lines(hub, env):
    hub.faults[BIG_PATH] = Fault(slow=4_000_000)
    seen, _ = on_a_terminal(command("org/big"), limit=30, env=env)
    assert b"\r[" in seen and b"#" in seen and b"MB/s" in seen and b"left" in seen
    hub.repos["org/big"].commit = "c" * 40
    hub.repos["org/big"].files["config.json"] = b"{ }"
    done = subprocess.run(command("org/big"), env=env, capture_output=True, text=True, timeout=30)
    assert "fetching org/big: 1 files" in done.stderr and "fetched org/big: 1 files" in done.stderr and "\r" not in done.stderr
    quiet = subprocess.run(command("org/tiny", "--quiet"), env=env, capture_output=True, text=True, timeout=30)
    assert quiet.returncode == 0 and quiet.stderr == ""


def test_the_server_loads_by_name(hub, env, monkeypatch):
    for key in set(os.environ) - set(env):
        monkeypatch.delenv(key)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    hub.faults["/resolve/" + COMMIT + "/tokenizer.json"] = Fault(slow=3_000)
    server = Server("--kv-cache-memory", "16MB", model_path="org/tiny@main", ready=False)
    try:
        wait_until(lambda: hub.gets("/tokenizer.json"))
        assert server.health() == 503
        server.wait_ready()
        ids = [m["id"] for m in server.http.get("/v1/models").json()["data"]]
        assert ids[0] == "org/tiny@main" and NAME in ids
        assert server.http.get("/v1/models/org/tiny@main").status_code == 200
        answer = server.post("/v1/completions", {"model": "org/tiny@main", "prompt": "Hello", "max_tokens": 4, "temperature": 0})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
    finally:
        assert server.stop() == 0
    program = Path(binary()).with_name("mlx_parallm")
    flags = ["--model-path", "org/sharded", "--max-tokens", "4", "--kv-cache-memory", "16MB", "Hello"]
    done = subprocess.run([program, "generate", *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_two_servers_at_once_fetch_once(hub, env, monkeypatch):
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    weights = hub.repos["org/tiny"].files["model.safetensors"]
    hub.faults["/" + etag_of("model.safetensors", weights)] = Fault(slow=len(weights), times=9)
    servers = [Server("--kv-cache-memory", "16MB", model_path="org/tiny", ready=False) for _ in range(2)]
    try:
        answers = []
        for server in servers:
            server.wait_ready()
            asked = {"model": "org/tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
            answers.append(server.post("/v1/completions", asked).json()["choices"])
        assert answers[0] == answers[1]
    finally:
        assert [server.stop() for server in servers] == [0, 0]
    assert sum(s.sent for s in hub.gets(port="cdn")) == len(weights)


def test_a_server_that_fetches_ends_at_sigterm(hub, env, monkeypatch):
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    hub.faults[BIG_PATH] = Fault(slow=200_000)
    server = Server(model_path="org/big", ready=False)
    wait_until(lambda: hub.gets(port="cdn") and hub.gets(port="cdn")[0].sent > 0)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(5) == 0
    assert (storage(env) / "blobs" / f"{BIG_PATH[1:]}.incomplete").stat().st_size > 0


def test_neither_a_file_nor_a_name(env):
    for path in ("no-such-thing", "/no/such/folder", "org/name.gguf"):
        ended = subprocess.run([binary(), "--model-path", path, "--port", "0"], env=env, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1 and f"no file or folder {path}" in ended.stderr and "ORG/NAME" in ended.stderr
