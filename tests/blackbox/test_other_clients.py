"""Clients that are not Python's openai: curl, and openai for node where npm can fetch it."""
import json
import os
import shutil
import subprocess

import pytest

from asking import CAPITAL, STORY
from serving import NAME

PARIS = "The capital of France is Paris."
CHAT = {"model": NAME, "temperature": 0, "messages": [{"role": "user", "content": CAPITAL}]}


def curl(*arguments):
    done = subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
class TestCurl:
    def test_chat(self, server):
        said = curl(f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(CHAT))
        assert json.loads(said)["choices"][0]["message"]["content"] == PARIS

    def test_without_a_content_type_header_of_ours(self, server):
        """curl -d alone announces a form."""
        assert PARIS in curl(f"{server.url}/v1/chat/completions", "-d", json.dumps(CHAT))

    def test_stream(self, server):
        lines = curl("-N", f"{server.url}/v1/chat/completions", "-d", json.dumps({**CHAT, "stream": True})).split("\n\n")
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
        assert "".join(delta.get("content") or "" for delta in deltas) == PARIS

    def test_http_1_0_head_and_expect(self, server):
        assert "ok" in curl("--http1.0", f"{server.url}/health")
        assert "200" in curl("-I", f"{server.url}/health").splitlines()[0]
        body = json.dumps({"model": NAME, "prompt": STORY + " " * 5000, "max_tokens": 1})
        assert "choices" in curl("-H", "Expect: 100-continue", f"{server.url}/v1/completions", "-d", body)

    def test_a_chunked_body(self, server):
        """mlx-lm's server answers 411."""
        said = curl("-H", "Transfer-Encoding: chunked", f"{server.url}/v1/chat/completions", "-d", json.dumps(CHAT))
        assert PARIS in said


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: "none", maxRetries: 0 });
const request = JSON.parse(process.env.REQUEST);
const whole = await client.chat.completions.create(request);
let streamed = "";
const stream = await client.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
let usage;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
let refused;
try { await client.chat.completions.create({ ...request, n: 0 }); } catch (e) { refused = [e.status, e.param]; }
console.log(JSON.stringify([whole.choices[0].message.content, streamed, usage.total_tokens, refused]));
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory):
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node here")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    fetched = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "openai@7.55.0"], cwd=folder, capture_output=True
    )
    if fetched.returncode != 0:
        pytest.skip("npm can't fetch openai here")
    return folder


def test_openai_for_node(server, node_folder):
    (node_folder / "ask.js").write_text(NODE)
    done = subprocess.run(
        ["node", "ask.js"], cwd=node_folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "URL": server.url, "REQUEST": json.dumps(CHAT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, streamed, total, refused = json.loads(done.stdout)
    assert whole == streamed == PARIS
    assert total > 37 and refused == [400, "n"]
