"""Starts and stops the server under test, as a user would: the binary, its flags, a port, signals."""
import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import httpx2

ROOT = Path(__file__).resolve().parents[2]
NAME = "smol"  # --served-model-name of every server the tests start


@cache
def binary():
    path = Path(os.environ.get("PARALLM_SERVER", ROOT / "build" / "bin" / "mlx_parallm_serve")).absolute()
    if not path.exists():
        raise FileNotFoundError(f"[serving] no server at {path}; run `make build` or set PARALLM_SERVER")
    return str(path)


@cache
def model():
    if path := os.environ.get("PARALLM_TEST_MODEL"):
        return path
    return subprocess.check_output(["make", "-s", "model"], cwd=ROOT, text=True).splitlines()[-1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def on_a_terminal(command, limit=60, **options):
    """What a command writes to standard error where that is a terminal, and to standard output where that is not."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, **options)
    os.close(follower)
    seen = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # the terminal's other end closed
            break
        if not block:
            break
        seen += block
    assert process.wait(limit) == 0
    return seen, process.stdout.read()


class Server:
    """One running server. `log` is everything it wrote."""

    def __init__(self, *flags, model_path=None, ready=True):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile("w+")
        command = [binary(), "--model-path", model_path or model(), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--served-model-name", NAME, *flags]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self.http = httpx2.Client(base_url=self.url, timeout=120, trust_env=False)
        if ready:
            self.wait_ready()

    def wait_ready(self, limit=120):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"[serving] the server ended with {self.process.returncode}:\n{self.log}")
            if self.health() == 200:
                return
            time.sleep(0.05)
        self.process.kill()
        raise TimeoutError(f"[serving] not ready after {limit} s:\n{self.log}")

    def health(self):
        """The status of /health, or 0 while the port is closed."""
        try:
            return self.http.get("/health", timeout=5).status_code
        except httpx2.TransportError:
            return 0

    @property
    def log(self):
        self._log.seek(0)
        return self._log.read()

    def metric(self, name):
        """The sum of a Prometheus metric over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        values = [float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, f"/metrics has no {name}"
        return sum(values)

    def running(self):
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")

    def wait_idle(self, limit=20):
        """True once no row runs or waits."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.running() == 0:
                return True
            time.sleep(0.05)
        return False

    def post(self, path, body, **kwargs):
        return self.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"}, **kwargs)

    def stop(self, limit=60):
        """SIGTERM; gives the exit status."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise TimeoutError(f"[serving] still running {limit} s after SIGTERM:\n{self.log}")
