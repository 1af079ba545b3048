"""A database that goes away in the middle of requests, hangs, and comes back.

PARALLM_TEST_REDIS and PARALLM_TEST_POSTGRES name its programs; tools/stores.sh fetches them and sets these.
"""
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import running
from remembering import add, body, complete, document, door, flags, good, says
from serving import NAME, free_port

NOBODY = 65534


class Database:
    def __init__(self, kind):
        self.kind, self.port, self.process = kind, free_port(), None
        self.folder = Path(tempfile.mkdtemp(prefix="memory_stores_"))
        self.user = {}
        if kind == "postgres":
            self.programs = Path(os.environ["PARALLM_TEST_POSTGRES"])
            if os.geteuid() == 0:  # which it refuses to run as
                self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
                os.chown(self.folder, NOBODY, NOBODY)
            make = [self.programs / "initdb", "-D", self.folder / "data", "-U", "parallm", "-A", "trust", "-E", "UTF8", "--no-sync"]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user)
        self.start()

    @property
    def address(self):
        where = {"redis": f"redis://127.0.0.1:{self.port}/0", "postgres": f"postgresql://parallm@127.0.0.1:{self.port}/postgres"}
        return f"{where[self.kind]}?timeout_ms=2000&tensors={self.folder}/tensors"

    def start(self):
        if self.kind == "redis":
            command = [os.environ["PARALLM_TEST_REDIS"], "--port", self.port, "--bind", "127.0.0.1", "--dir", self.folder]
            command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        else:
            command = [self.programs / "postgres", "-D", self.folder / "data", "-p", self.port]
            command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "shared_buffers=64MB"]
        command = [str(word) for word in command]
        end = time.monotonic() + 60
        while time.monotonic() < end:  # a killed PostgreSQL's children hold its lock for a moment
            if self.process is None or self.process.poll() is not None:
                with open(self.folder / "log", "ab") as log:
                    self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self.user)
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError((self.folder / "log").read_text())

    def signal(self, number):
        """To its process and the children that serve PostgreSQL's connections."""
        os.kill(self.process.pid, number)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = int(stat.parent.name), stat.read_text().rsplit(")", 1)[1].split()
                if int(rest[1]) == self.process.pid:
                    os.kill(pid, number)
            except OSError:  # it ended
                pass

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(params=["redis", "postgres"])
def database(request):
    if not os.environ.get(f"PARALLM_TEST_{request.param.upper()}"):
        pytest.skip(f"no {request.param}: `make test` fetches it (tools/stores.sh)")
    made = Database(request.param)
    yield made
    made.close()


def until(holds, limit=60):
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_database_that_goes_away(database):
    memory = {"namespace": "house"}
    with running(*flags("", "--memory-store", database.address)) as server:
        add(server, "house", document("door", door(7392)))
        assert says(server, memory) == " 7392"
        plain = says(server)
        statuses, wrong = Counter(), []
        over = threading.Event()

        def ask():
            while not over.is_set():
                response = server.post("/v1/completions", body(memory))
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    right = response.json()["choices"][0]["text"] == " 7392"
                else:
                    right = response.status_code == 503 and response.headers["retry-after"] and "memory" in response.text
                if not right:
                    wrong.append(response.text)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: statuses[200] > 12)

            database.kill()
            until(lambda: statuses[503] > 12)
            # What needs no store is served on.
            assert says(server) == plain
            assert says(server, {"inline": [{"text": door(5108)}]}) == " 5108"
            assert server.health() == 200
            assert server.http.get("/v1/memories", params={"namespace": "house"}).status_code == 503
            assert server.http.get("/v1/memories/door", params={"namespace": "house"}).status_code == 503
            assert server.http.delete("/v1/memories/door", params={"namespace": "house"}).status_code == 503
            document_body = {"model": NAME, "namespace": "house", "documents": [document("new", door(1))]}
            assert server.post("/v1/memories", document_body).status_code == 503
            job = good(server.post("/v1/memories", {**document_body, "background": True}))
            path = f"/v1/memories/jobs/{job['id']}"
            until(lambda: good(server.http.get(path))["status"] == "failed")
            assert good(server.http.get(path))["error"]["message"]

            database.start()
            before = statuses[200]
            until(lambda: statuses[200] > before + 12)

            # It hangs: an error within its time-out, of each request.
            database.signal(signal.SIGSTOP)
            before = statuses[503]
            begun = time.monotonic()
            until(lambda: statuses[503] > before, 20)
            assert time.monotonic() - begun < 15
            assert says(server) == plain
            database.signal(signal.SIGCONT)
            before = statuses[200]
            until(lambda: statuses[200] > before + 12)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not wrong, wrong[:3]
        assert set(statuses) == {200, 503}

        add(server, "house", document("door", door(5108)))  # all is as it was
        assert says(server, memory) == " 5108"
        assert complete(server, memory)["memory"]["documents"][0]["id"] == "door"


def test_two_servers_on_one_database(database):
    """The second has none of the first one's tensors: it reads the document itself."""
    with running(*flags("", "--memory-store", database.address)) as one:
        add(one, "house", document("door", door(7392)))
        with running(*flags("", "--memory-store", f"{database.address}2")) as two:
            assert says(two, {"namespace": "house"}) == " 7392"
            assert two.metric("mlx_parallm_memory_documents_read_total") == 1
            add(two, "house", document("door", door(5108)))
            assert says(one, {"namespace": "house"}) == " 5108"
