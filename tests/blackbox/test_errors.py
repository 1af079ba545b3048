"""Everything malformed is a 4xx with an OpenAI error object that names the field."""
import json

import httpx2
import openai
import pytest

from asking import STORY
from serving import NAME

CHAT = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
TEXT = {"model": NAME, "prompt": "Hi", "max_tokens": 1}
VOCABULARY = 49152

BOTH = [
    ("temperature", -0.1), ("temperature", 1e9), ("temperature", "hot"), ("temperature", True), ("temperature", []),
    ("top_p", -0.1), ("top_p", 1.1), ("top_p", "x"),
    ("top_k", -2), ("top_k", 1.5), ("top_k", "x"),
    ("min_p", -1), ("min_p", 2),
    ("repetition_penalty", 0), ("repetition_penalty", -1),
    ("presence_penalty", 3), ("frequency_penalty", -3),
    ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", "ten"), ("max_tokens", 10**12),
    ("min_tokens", -1),
    ("n", 0), ("n", -1), ("n", 1.5), ("n", "two"), ("n", 10**6),
    ("seed", "x"), ("seed", 1.5),
    ("stop", [1]), ("stop", 5), ("stop", {}),
    ("stop_token_ids", [VOCABULARY]), ("stop_token_ids", [-1]), ("stop_token_ids", "x"),
    ("stream", "yes"), ("stream", 1),
    ("logit_bias", {str(VOCABULARY): 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"no such token": 1}),
    ("logit_bias", {"5": "x"}), ("logit_bias", {"5": 101}), ("logit_bias", [1]),
    ("ignore_eos", "yes"),
    ("model", 5), ("model", None),
]  # fmt: skip
CHAT_ONLY = [
    ("messages", []), ("messages", "Hi"), ("messages", None), ("messages", [5]), ("messages", [{}]),
    ("messages", [{"role": "user"}]), ("messages", [{"role": 5, "content": "x"}]),
    ("messages", [{"role": "user", "content": 5}]), ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
    ("logprobs", 5), ("top_logprobs", 1000), ("top_logprobs", -1),
]  # fmt: skip
TEXT_ONLY = [
    ("prompt", None), ("prompt", 5), ("prompt", {}), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "x"]),
    ("prompt", [-1]), ("prompt", [VOCABULARY]), ("prompt", [2**40]), ("prompt", [[1], [VOCABULARY]]), ("prompt", [1.5]),
    ("prompt", [None]), ("logprobs", -1), ("logprobs", 10**6), ("echo", "yes"),
]  # fmt: skip


def refused(response, param=None, status=400):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    if param:
        assert error["param"] and error["param"].split("[")[0].split(".")[0] == param, error
    return error


def ids(case):
    return json.dumps(case)[:40] if not isinstance(case, str) else case


@pytest.mark.parametrize("field,value", BOTH + CHAT_ONLY, ids=ids)
def test_chat_field(server, field, value):
    refused(server.post("/v1/chat/completions", {**CHAT, field: value}), field)


@pytest.mark.parametrize("field,value", BOTH + TEXT_ONLY, ids=ids)
def test_completion_field(server, field, value):
    refused(server.post("/v1/completions", {**TEXT, field: value}), field)


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_missing_field(server, field):
    refused(server.post("/v1/completions", {k: v for k, v in TEXT.items() if k != field}), field)


def test_missing_messages(server):
    refused(server.post("/v1/chat/completions", {"model": NAME}), "messages")


def test_null_means_absent(server):
    optional = "temperature top_p n stream stop max_tokens seed logit_bias logprobs user presence_penalty".split()
    for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
        response = server.post(path, {**body, **dict.fromkeys(optional), "max_tokens": 1})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"null", b'"x"', b'{"model": }', b"\xff\xfe", b"{}x"])
def test_not_an_object(server, body):
    refused(server.http.post("/v1/completions", content=body))


def test_invalid_utf8(server):
    """mlx-lm's server closed the connection."""
    body = b'{"model": "smol", "prompt": "\xff\xfe\x80"}'
    refused(server.http.post("/v1/completions", content=body))


def test_lone_surrogates(server):
    body = b'{"model": "smol", "prompt": "\\ud800", "max_tokens": 1}'
    assert server.http.post("/v1/completions", content=body).status_code in (200, 400)


def test_an_unknown_model_is_404(server, client):
    error = refused(server.post("/v1/completions", {**TEXT, "model": "gpt-9"}), "model", status=404)
    assert "gpt-9" in error["message"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_unknown_paths_and_methods(server):
    refused(server.http.get("/nothing"), status=404)
    refused(server.http.get("/v1/completions"), status=405)
    refused(server.http.delete("/health"), status=405)


def test_an_unknown_field_is_named(server, start):
    body = {**TEXT, "colour": "blue", "taste": 1}
    ignored = server.post("/v1/completions", body)
    assert ignored.status_code == 200
    assert {"colour", "taste"} <= {name.strip() for name in ignored.headers["x-ignored-fields"].split(",")}
    with start("--strict", "true") as strict:
        refused(strict.post("/v1/completions", body), "colour")
        assert strict.post("/v1/completions", TEXT).status_code == 200


def test_an_api_key(start):
    with start("--api-key", "secret") as locked:
        assert locked.http.get("/health").status_code == 200
        refused(locked.post("/v1/completions", TEXT), status=401)
        refused(locked.http.get("/v1/models", headers={"authorization": "Bearer wrong"}), status=401)
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret", max_retries=0) as client:
            assert client.completions.create(**TEXT).choices
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


def test_a_bad_row_does_not_hurt_its_neighbours(server, client):
    """Some of what killed mlx-lm's generation thread or process, between requests that must be answered."""
    for body in (
        {"prompt": ["a", "b"]}, {"prompt": ""}, {"stop": [1]}, {"top_k": VOCABULARY + 5, "temperature": 1},
        {"logit_bias": {str(VOCABULARY): 1}}, {"seed": -1}, {"prompt": [1, 2, 3]}, {"prompt": "x" * 200000},
    ):  # fmt: skip
        assert server.post("/v1/completions", {**TEXT, **body}).status_code in (200, 400), body
        assert client.completions.create(**{**TEXT, "prompt": STORY, "temperature": 0}).choices[0].text == " there"


def test_malformed_http(server):
    """Anything that isn't HTTP is answered 400 or hung up on; the next client is served."""
    import socket

    for junk in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 100, b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"A" * 70000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
            s.sendall(junk)
            s.shutdown(socket.SHUT_WR)
            answer = s.recv(4096)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), junk[:20]
    assert httpx2.get(f"{server.url}/health", trust_env=False).status_code == 200
