"""The server under test and its clients. PARALLM_SERVER and PARALLM_TEST_MODEL name another binary and model."""
import os
from contextlib import contextmanager

import openai
import pytest

from serving import Server

# A proxy of the machine's is not for talking to a local server.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


@contextmanager
def running(*flags, **options):
    """A server that must live to the end and then exit 0 on SIGTERM."""
    started = Server(*flags, **options)
    try:
        yield started
        assert started.process.poll() is None, f"the server died:\n{started.log[-5000:]}"
    finally:
        status = started.stop()
    assert status == 0, f"exit status {status}:\n{started.log[-5000:]}"


@pytest.fixture(scope="session")
def server():
    with running("--max-batch-size", "32") as started:
        yield started


@pytest.fixture(scope="module")
def float32_server():
    with running("--dtype", "float32", "--max-batch-size", "32") as started:
        yield started


@pytest.fixture(scope="module")
def old_style_server():
    """The old server's continuous scheduler with its own limits, all as that server took them."""
    flags = "--max-batch-size 4 --scheduler continuous --batch-timeout 3 --max-concurrent-streams 2 --diverse-mode true"
    with running(*flags.split()) as started:
        yield started


@pytest.fixture
def start():
    """start(flag, ...) gives a server of the test's own."""
    return running


@pytest.fixture
def client(server):
    with client_of(server) as made:
        yield made


def client_of(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 120, **options})
