"""Prefix reuse: seen in usage, never in the text."""
from asking import at_once, complete, recorded
from serving import NAME

LONG = recorded("long_text")


def cached(response):
    details = response.usage.prompt_tokens_details
    return details.cached_tokens if details else 0


def fresh(tag):
    """A prompt of some 170 tokens that no other test begins like."""
    return f"{tag}: {LONG['text']}"


def test_the_second_ask_reuses_the_first(client):
    first, second = (complete(client, fresh("Twice"), max_tokens=24) for _ in range(2))
    assert cached(first) < 16
    assert cached(second) > 0.8 * second.usage.prompt_tokens
    assert cached(second) < second.usage.prompt_tokens  # the last token is always read: its logits are the answer
    assert first.choices[0].text == second.choices[0].text


def test_a_common_prefix_is_enough(client):
    whole = fresh("Partly")
    complete(client, whole, max_tokens=1)
    half = whole[: len(whole) // 2] + " Then a dragon came, and"
    reused = complete(client, half, max_tokens=24)
    assert 0.3 * reused.usage.prompt_tokens < cached(reused) < reused.usage.prompt_tokens


def test_a_conversation_reuses_its_own_answers(client):
    messages = [{"role": "user", "content": fresh("Talk")}]
    first = client.chat.completions.create(model=NAME, temperature=0, max_tokens=40, messages=messages)
    messages += [first.choices[0].message.model_dump(include={"role", "content"}), {"role": "user", "content": "And?"}]
    second = client.chat.completions.create(model=NAME, temperature=0, max_tokens=4, messages=messages)
    assert cached(second) > first.usage.prompt_tokens - 16


def test_n_choices_read_the_prompt_once(server, client):
    """In flight: the eight choices share the prompt's KV while the first is being read."""
    before = server.metric("vllm:prompt_tokens_total") - server.metric("vllm:prefix_cache_hits_total")
    response = complete(client, fresh("Eight"), n=8, temperature=1, max_tokens=4)
    read = server.metric("vllm:prompt_tokens_total") - server.metric("vllm:prefix_cache_hits_total") - before
    assert len(response.choices) == 8
    assert read < 2.5 * response.usage.prompt_tokens


def test_rows_in_flight_share(server, client):
    """A second request comes while the first still generates."""
    prompt = fresh("Flight")
    seen = []
    stream = client.completions.create(
        model=NAME, prompt=prompt, temperature=0, max_tokens=120, stream=True, extra_body={"ignore_eos": True}
    )
    for chunk in stream:
        if not seen:
            seen.append(complete(client, prompt, max_tokens=8))
    assert cached(seen[0]) > 0.8 * seen[0].usage.prompt_tokens


def test_shared_then_parted_rows_do_not_touch_each_other(server, client):
    """Rows that share a prefix and then part, in one batch and with sampled neighbours."""
    prompts = [fresh("Part") + tail for tail in (" Moon", " Sun", " Star", "")]
    requests = [{"model": NAME, "prompt": p, "temperature": 0, "max_tokens": 20} for p in prompts]
    together = at_once(server, [(r, False) for r in requests] * 2)
    alone = [complete(client, p, max_tokens=20).choices[0].text for p in prompts]
    assert together == alone * 2


def test_without_the_cache(start):
    with start("--prefix-cache", "false") as plain:
        body = {"model": NAME, "prompt": fresh("Off"), "temperature": 0, "max_tokens": 8}
        first, second = (plain.post("/v1/completions", body).json() for _ in range(2))
        assert first["choices"][0]["text"] == second["choices"][0]["text"]
        details = second["usage"].get("prompt_tokens_details") or {"cached_tokens": 0}
        assert details["cached_tokens"] == 0


def test_scoring_is_not_cut_short_by_a_hit(client):
    """echo + logprobs need every position's logits, also where the KV is there already."""
    first, second = (complete(client, fresh("Score"), max_tokens=0, echo=True, logprobs=1) for _ in range(2))
    scores = [r.choices[0].logprobs.token_logprobs for r in (first, second)]
    assert scores[0] == scores[1] and len(scores[0]) == first.usage.prompt_tokens


def test_many_prefixes_evict_each_other(start):
    """A cache smaller than what comes through: nothing fails, nothing changes."""
    with start("--kv-cache-memory", "24MB") as small:
        bodies = [
            {"model": NAME, "prompt": fresh(f"Evict {i}"), "temperature": 0, "max_tokens": 4} for i in range(6)
        ]
        texts = set()
        for body in bodies * 2:
            response = small.post("/v1/completions", body)
            assert response.status_code == 200, response.text
            texts.add((body["prompt"], response.json()["choices"][0]["text"]))
        assert len(texts) == 6
