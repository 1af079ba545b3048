"""What lm-eval's local-completions sends and reads to score choices: lists of token-id lists, echo, logprobs of the
prompt, one token made and thrown away. No other MLX server answers it."""
from math import exp

import pytest

from asking import complete, recorded
from serving import NAME


def scored(server, prompts):
    body = {
        "model": NAME, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True
    }  # fmt: skip
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return sorted(response.json()["choices"], key=lambda choice: choice["index"])


def loglikelihood(choice, context_length):
    """As lm-eval's parse_logprobs does: the continuation's sum, and whether greedy decoding would say it."""
    tokens = choice["logprobs"]["token_logprobs"][context_length:-1]
    tops = choice["logprobs"]["top_logprobs"][context_length:-1]
    return sum(tokens), all(value == max(top.values()) for value, top in zip(tokens, tops))


def test_batches_of_token_ids(server, client):
    context = recorded("story")["ids"]
    likely = context + recorded("story")["float32"]["ids"][:8]
    unlikely = context + recorded("digits")["ids"][:8]
    prompts = [likely, unlikely, recorded("pi")["ids"]]
    choices = scored(server, prompts)
    assert [c["index"] for c in choices] == [0, 1, 2]
    for choice, ids in zip(choices, prompts):
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(ids) + 1
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        assert all(isinstance(top, dict) and top for top in logprobs["top_logprobs"][1:])
    best, second = (loglikelihood(choice, len(context)) for choice in choices[:2])
    assert best[1] and not second[1]
    assert best[0] > second[0]


def test_the_scores_are_those_of_generating(server, client):
    """log p(continuation) by echo is the sum of the logprobs it had when it was generated."""
    made = complete(client, recorded("story")["ids"], max_tokens=8, logprobs=1).choices[0].logprobs
    ids = recorded("story")["ids"] + recorded("story")["float32"]["ids"][:8]
    (choice,) = scored(server, [ids])
    assert loglikelihood(choice, len(recorded("story")["ids"]))[0] == pytest.approx(sum(made.token_logprobs), abs=0.02)


def test_scores_agree_with_perplexity(server):
    text = "The cat sat on the mat."
    (choice,) = scored(server, [text])
    values = choice["logprobs"]["token_logprobs"][1:-1]
    answer = server.post("/v1/perplexity", {"model": NAME, "text": text}).json()
    assert answer["token_count"] == len(values)
    assert answer["ppl"] == pytest.approx(exp(-sum(values) / len(values)), rel=1e-2)
