"""10,000 malformed bodies: each gets an answer, none of them our fault, and afterwards the server answers right.

Raw sockets, kept alive: the server must read exactly the body it was told of and keep the connection for the next.
"""
import json
import socket
import threading
from collections import Counter

from asking import ask, greedy, recorded
from conftest import client_of, running
from fuzz import MEMORY_PATHS, bodies, targets
from remembering import flags

COUNT, CONNECTIONS, SEED = 10_000, 8, 20
OURS_BY_DESIGN = {501, 503}


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.file = self.socket.makefile("rb")

    def ask(self, path, body, method="POST"):
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        return self.answer()

    def answer(self):
        """(status, headers, body); raises where the connection ended without an answer."""
        line = self.file.readline()
        if not line:
            raise ConnectionError("closed without an answer")
        status = int(line.split()[1])
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, value = line.decode("latin-1").split(":", 1)
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.file.readline(), 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
        else:
            body = self.file.read(int(headers["content-length"]))
        return status, headers, body


SHORT = ("--max-context-length", "600")  # a damaged body may lose its max_tokens, and would be answered for minutes


def test_ten_thousand_malformed_bodies():
    with running("--max-batch-size", "32", *SHORT) as server, client_of(server) as client:
        statuses = ask_all(server, client, [("POST", path, body) for path, body in bodies(SEED, COUNT)])
        assert statuses[400] > COUNT / 2


def test_malformed_memories(tmp_path):
    with running(*flags(tmp_path, *SHORT)) as server, client_of(server) as client:
        asked = [("POST", path, body) for path, body in bodies(SEED, COUNT // 4, MEMORY_PATHS)]
        asked += [(method, target, b"{}" if method == "POST" else b"") for method, target in targets(SEED, COUNT // 4)]
        statuses = ask_all(server, client, asked)
        assert statuses[400] > COUNT / 8 and statuses[200] > COUNT / 100


def ask_all(server, client, asked):
    """Sends all of it; how often each status came."""
    waiting = list(enumerate(asked))
    lock = threading.Lock()
    failures, statuses = [], Counter()

    def work():
        connection = Connection(server.port)
        while True:
            with lock:
                if not waiting or len(failures) > 20:
                    return
                number, (method, path, body) = waiting.pop()
            try:
                status, headers, answer = connection.ask(path, body, method)
            except (OSError, ValueError, KeyError, IndexError) as error:
                failures.append((number, path, body[:300], repr(error)))
                connection = Connection(server.port)
                continue
            statuses[status] += 1
            if status >= 500 and status not in OURS_BY_DESIGN:
                failures.append((number, path, body[:300], status, answer[:300]))
            elif 400 <= status < 500:
                error = json.loads(answer)["error"]
                if not (isinstance(error["message"], str) and error["message"]):
                    failures.append((number, path, body[:300], status, answer[:300]))
            if headers.get("connection", "").lower() == "close":
                failures.append((number, path, body[:300], status, "closed a healthy connection"))
                connection = Connection(server.port)

    workers = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(dict(statuses))
    assert not failures, "\n".join(map(str, failures[:20]))
    assert sum(statuses.values()) == len(asked)
    assert server.wait_idle()
    assert ask(client, greedy(recorded("capital"), 7)) == "The capital of France is Paris."
    return statuses
