"""More rows than KV: rows are set back and resumed, none is dropped, none says anything else."""
from conftest import client_of

from asking import ask, at_once, greedy, neighbours, recorded
from serving import NAME

PROMPTS = ("story", "pi", "digits", "one_word", "json", "code", "capital", "haiku")
TOKENS = 100


def test_every_request_finishes_with_the_text_it_has_alone(start):
    with start("--kv-cache-memory", "10MB", "--max-batch-size", "8") as small:
        requests = [greedy(recorded(name), TOKENS) for name in PROMPTS]
        with client_of(small) as client:
            alone = [ask(client, request) for request in requests]
        before = small.metric("vllm:num_preemptions_total")
        assert at_once(small, [(request, i % 2 == 0) for i, request in enumerate(requests)]) == alone
        assert small.metric("vllm:num_preemptions_total") > before, "the KV was large enough: the test shows nothing"


def test_sampled_and_penalized_rows_resume_too(start):
    """What a row has said before it was set back counts in penalties, in its seed's draws and in its logprobs."""
    with start("--kv-cache-memory", "10MB", "--max-batch-size", "8") as small:
        request = {
            "model": NAME, "prompt": recorded("story")["text"], "temperature": 0.9, "max_tokens": TOKENS,
            "frequency_penalty": 0.7, "presence_penalty": 0.3,
            "extra_body": {"repetition_penalty": 1.1, "ignore_eos": True},
        }  # fmt: skip
        requests = [{**request, "seed": seed} for seed in range(8)]
        with client_of(small) as client:
            alone = [ask(client, r) for r in requests]
            scored = client.completions.create(**requests[0], logprobs=1).choices[0].logprobs.token_logprobs
        before = small.metric("vllm:num_preemptions_total")
        assert at_once(small, [(r, False) for r in requests]) == alone
        assert small.metric("vllm:num_preemptions_total") > before
        assert len(scored) == TOKENS


def test_what_can_never_fit_is_refused_and_what_cannot_yet_waits(start):
    with start("--kv-cache-memory", "10MB", "--max-batch-size", "8") as small:
        never = {"model": NAME, "prompt": [7] * 2000, "max_tokens": 1}
        response = small.post("/v1/completions", never)
        assert response.status_code == 400, response.text
        jobs = [(request, False) for request in neighbours(24, seed=6)]
        assert len(at_once(small, jobs, in_flight=24)) == 24
        assert small.wait_idle()
