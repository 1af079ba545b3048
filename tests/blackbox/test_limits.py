"""What the server refuses so that it stays up: a full queue, long prompts, huge bodies, slow and idle clients."""
import asyncio
import resource
import re
import socket
import time

import openai
import pytest

from asking import STORY, async_client, complete
from serving import NAME


def test_a_full_queue_answers_429_with_retry_after(start):
    with start("--max-batch-size", "1", "--max-queue", "2") as small:
        request = {"model": NAME, "prompt": STORY, "max_tokens": 60, "extra_body": {"ignore_eos": True}}

        async def flood():
            async with async_client(small) as client:
                calls = [client.completions.create(**request) for _ in range(12)]
                return await asyncio.gather(*calls, return_exceptions=True)

        answers = asyncio.run(flood())
        refused = [a for a in answers if isinstance(a, openai.RateLimitError)]
        served = [a for a in answers if not isinstance(a, Exception)]
        assert len(refused) + len(served) == 12 and len(served) >= 2 and len(refused) >= 6, answers
        assert all(int(a.response.headers["retry-after"]) >= 1 for a in refused)
        assert all(a.body["message"] and "type" in a.body for a in refused)
        assert small.wait_idle()
        assert small.post("/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 1}).status_code == 200


def test_a_prompt_too_long_names_both_lengths(start):
    with start("--max-context-length", "128") as short:
        body = {"model": NAME, "prompt": [7] * 200, "max_tokens": 1}
        response = short.post("/v1/completions", body)
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "128" in message and "200" in message, message
        body = {"model": NAME, "prompt": [7] * 100, "max_tokens": 100}
        assert short.post("/v1/completions", body).status_code == 400
        fits = short.post("/v1/completions", {**body, "max_tokens": 28, "ignore_eos": True}).json()
        assert fits["usage"]["completion_tokens"] == 28


def test_a_huge_body_is_413(server):
    response = server.http.post("/v1/completions", content=b'{"prompt": "' + b"x" * (64 << 20) + b'"}')
    assert response.status_code == 413
    assert response.json()["error"]["message"]


def test_a_huge_announced_body_is_refused_unread(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999\r\n\r\n")
        assert s.recv(64).startswith(b"HTTP/1.1 413")


def test_slow_clients_hold_nobody_up(server, client):
    """Bodies that come byte by byte, and streams that nobody reads."""
    complete(client, STORY, max_tokens=1)
    slow = []
    for _ in range(20):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        slow.append(s)
    body = b'{"model":"smol","prompt":"x","max_tokens":200,"stream":true,"ignore_eos":true}'
    for _ in range(4):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.connect(("127.0.0.1", server.port))
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        slow.append(s)
    begin = time.monotonic()
    assert complete(client, STORY, max_tokens=2).choices[0].text
    assert time.monotonic() - begin < 5
    for s in slow:
        s.close()
    assert server.wait_idle()


def test_500_idle_connections(server, client):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 600:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1024), hard))
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(500)]
    assert complete(client, STORY, max_tokens=2).choices[0].text
    assert server.http.get("/health").status_code == 200
    idle[-1].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert idle[-1].recv(64).startswith(b"HTTP/1.1 200")
    for s in idle:
        s.close()


def test_a_deadline_is_a_504_and_frees_the_row(start):
    with start("--request-timeout-seconds", "1") as hasty:
        body = {"model": NAME, "prompt": STORY, "max_tokens": 4000, "ignore_eos": True}
        response = hasty.post("/v1/completions", body)
        assert response.status_code == 504, response.text
        assert response.json()["error"]["message"]
        assert hasty.wait_idle(5)
        assert hasty.post("/v1/completions", {**body, "max_tokens": 1}).status_code == 200


def test_pipelined_requests_are_answered_in_order(server):
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 3 + b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
        s.sendall(request)
        answer = b""
        while block := s.recv(4096):
            answer += block
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answer)
    assert statuses == [b"200", b"200", b"200", b"404"]
