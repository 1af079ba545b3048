"""Chat with a model that has no template, and templates by flag."""
import json
import subprocess
from pathlib import Path

import pytest

from conftest import client_of
from serving import NAME, binary, model

CHAT = {"model": NAME, "messages": [{"role": "user", "content": "The capital of France is"}], "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The default model as a folder without a chat template."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    subprocess.run(
        [Path(binary()).with_name("mlx_parallm"), "convert", "--hf-path", model(), "--mlx-path", folder],
        capture_output=True, timeout=300, check=True)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert config.pop("chat_template")
    file.write_text(json.dumps(config))
    return folder


def completion(client):
    return client.completions.create(model=NAME, prompt="The capital of France is", max_tokens=8, temperature=0)


def test_a_model_without_a_template_says_which_flag_gives_one(bare, start):
    with start(model_path=bare) as server:
        answer = server.http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 400
        assert "the model has no chat template: start the server with --chat-template" in answer.json()["error"]["message"]
        with client_of(server) as client:
            assert completion(client).choices[0].text


@pytest.mark.parametrize("as_file", [True, False])
def test_the_flag_gives_one(bare, start, tmp_path, as_file):
    template = "{{ messages[-1].content }}"  # so that a chat is a completion
    (tmp_path / "plain.jinja").write_text(template)
    with start("--chat-template", str(tmp_path / "plain.jinja") if as_file else template, model_path=bare) as server:
        with client_of(server) as client:
            chat = client.chat.completions.create(**CHAT)
            plain = completion(client)
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_template_that_is_none_of_these_is_refused_at_start(bare):
    done = subprocess.run(
        [binary(), "--model-path", bare, "--chat-template", "nothing"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "must be a file, a template's text or one of the model's templates (it has none); got nothing" in done.stderr
