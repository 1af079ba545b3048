"""The process: starting, flags, loading, signals."""
import os
import signal
import subprocess
import threading
import time

import httpx2
import pytest

from asking import STORY
from serving import NAME, Server, binary, free_port, model

BODY = {"model": NAME, "prompt": STORY, "temperature": 0, "max_tokens": 120, "ignore_eos": True}


def test_sigterm_drains_a_running_stream_then_exits_0():
    server = Server()
    pieces, refused = [], []
    with server.http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                pieces.append(line)
            if len(pieces) == 5:
                server.process.send_signal(signal.SIGTERM)
                pieces.append("signalled")
                refused.append(after_sigterm(server))
    assert pieces[-1] == "data: [DONE]"
    assert len(pieces) > 60
    assert refused == [True]
    assert server.stop() == 0


def after_sigterm(server):
    """A new request is refused (503) or finds the port closed; it isn't left hanging."""
    time.sleep(0.2)
    try:
        return httpx2.post(f"{server.url}/v1/completions", json=BODY, timeout=20, trust_env=False).status_code == 503
    except httpx2.TransportError:
        return True


def test_sigint_ends_it_too():
    server = Server()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0


def test_a_second_sigterm_does_not_wait_for_the_stream():
    server = Server()
    endless = {**BODY, "max_tokens": 8000, "stream": True}

    def read():
        try:
            httpx2.post(f"{server.url}/v1/completions", json=endless, timeout=60, trust_env=False)
        except httpx2.TransportError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    while server.running() == 0:
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)
    reader.join()


def test_health_is_503_while_loading():
    server = Server(ready=False)
    seen = set()
    while server.process.poll() is None and 200 not in seen:
        seen.add(server.health())
    status = server.stop()
    assert seen <= {0, 503, 200} and 503 in seen and status == 0


def test_sigterm_while_loading_ends_at_once(tmp_path):
    os.mkfifo(tmp_path / "model.gguf")  # opening it waits for a writer, who never comes
    server = Server(model_path=str(tmp_path / "model.gguf"), ready=False)
    while server.health() != 503:
        assert server.process.poll() is None, server.log
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert "stopped while loading" in server.log


@pytest.mark.parametrize("path", ["/no/such/folder", "/dev/null", "no-such-user/no-such-model.gguf"])
def test_a_bad_model_path_is_one_clear_line(path):
    ended = subprocess.run(
        [binary(), "--model-path", path, "--port", str(free_port())], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode not in (0, -6, -11)
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if path in line]
    assert lines, ended.stdout + ended.stderr
    assert "terminate called" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_folder_without_a_model(tmp_path):
    ended = subprocess.run([binary(), "--model-path", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode not in (0, -6, -11)
    assert str(tmp_path) in ended.stdout + ended.stderr


def test_a_truncated_model(tmp_path):
    cut = tmp_path / "cut.gguf"
    with open(model(), "rb") as whole:
        cut.write_bytes(whole.read(50_000_000))
    port = str(free_port())
    ended = subprocess.run([binary(), "--model-path", str(cut), "--port", port], capture_output=True, text=True, timeout=60)
    assert ended.returncode not in (0, -6, -7, -11)
    assert str(cut) in ended.stdout + ended.stderr


def test_a_port_in_use():
    server = Server()
    taken = subprocess.run(
        [binary(), "--model-path", model(), "--port", str(server.port)], capture_output=True, text=True, timeout=60
    )
    assert taken.returncode not in (0, -6, -11)
    assert str(server.port) in taken.stdout + taken.stderr
    assert server.stop() == 0


@pytest.mark.parametrize(
    "flags",
    [["--max-batch-size", "0"], ["--port", "x"], ["--port", "70000"], ["--no-such-flag"], ["--dtype", "int3"],
     ["--kv-cache-memory", "much"], ["--diverse-mode", "perhaps"], ["--max-context-length", "-5"]],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_flag_is_named(flags):
    ended = subprocess.run([binary(), "--model-path", model(), *flags], capture_output=True, text=True, timeout=60)
    assert ended.returncode not in (0, -6, -11)
    assert flags[0].lstrip("-") in ended.stdout + ended.stderr


def test_the_old_servers_flags(start):
    """Every flag it took, with its spelling and with values for booleans; what changes nothing now says so."""
    flags = (
        "--max-batch-size 8 --batch-timeout 0.05 --request-timeout-seconds 600 --max-concurrent-streams 4"
        " --scheduler continuous --diverse-mode false --max-context-length 4096"
    )
    with start(*flags.split()) as server:
        assert server.post("/v1/completions", {**BODY, "max_tokens": 1}).status_code == 200
        assert "batch-timeout" in server.log and "scheduler" in server.log
    with start("--diverse-mode", "true", "--scheduler", "default") as server:
        assert server.health() == 200


def test_help_and_version():
    for flag in ("--help", "--version"):
        shown = subprocess.run([binary(), flag], capture_output=True, text=True, timeout=20)
        assert shown.returncode == 0 and shown.stdout.strip()
