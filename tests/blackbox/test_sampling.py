"""Every sampling field, seen from outside: what it must allow, forbid and reproduce."""
from math import exp

import pytest

from asking import CAPITAL, STORY, ask, at_once, complete, neighbours, recorded
from serving import NAME

HOT = {"temperature": 1.3, "max_tokens": 24}
END = 2  # <|im_end|>


def plain(client, prompt=STORY, **options):
    return complete(client, prompt, **options).choices[0].text


def test_a_seed_reproduces_alone_and_under_load(server, client):
    request = {"model": NAME, "prompt": STORY, "seed": 42, **HOT}
    alone = ask(client, request)
    assert ask(client, request) == alone
    assert ask(client, {**request, "seed": 43}) != alone
    jobs = [(request, i % 2 == 0) for i in range(6)] + [(r, False) for r in neighbours(12, seed=4)]
    assert at_once(server, jobs)[:6] == [alone] * 6


def test_a_seed_gives_n_different_choices_again_and_again(client):
    first, second = ([c.text for c in complete(client, STORY, n=5, seed=7, **HOT).choices] for _ in range(2))
    assert first == second
    assert len(set(first)) == 5


def test_no_seed_is_a_new_one_each_time(client):
    assert len({plain(client, **HOT) for _ in range(4)}) == 4


def test_large_seeds(client):
    assert plain(client, seed=2**63 - 1, **HOT) == plain(client, seed=2**63 - 1, **HOT) != plain(client, seed=0, **HOT)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filter_is_greedy(client, narrow):
    assert plain(client, seed=1, **HOT, **narrow) == plain(client, max_tokens=24)


def test_top_k_keeps_k(client):
    top = complete(client, STORY, max_tokens=1, logprobs=3).choices[0].logprobs.top_logprobs[0]
    seen = {c.text for c in complete(client, STORY, max_tokens=1, temperature=2, top_k=3, n=64, seed=2).choices}
    assert 1 < len(seen) and seen <= set(top)


def test_min_p_keeps_the_likely(client):
    top = complete(client, STORY, max_tokens=1, logprobs=5).choices[0].logprobs.top_logprobs[0]
    best = max(top.values())
    kept = {token for token, logprob in top.items() if exp(logprob - best) >= 0.3}
    seen = {c.text for c in complete(client, STORY, max_tokens=1, temperature=1, min_p=0.3, n=64, seed=2).choices}
    assert seen <= kept


def test_samples_follow_the_probabilities(client):
    """128 draws of one token: the most likely one's share is within four standard errors of its probability."""
    top = complete(client, "The capital of France is", max_tokens=1, logprobs=1).choices[0].logprobs.top_logprobs[0]
    (token, logprob), = top.items()
    drawn = complete(client, "The capital of France is", max_tokens=1, temperature=1, n=128, seed=11).choices
    p, share = exp(logprob), sum(c.text == token for c in drawn) / 128
    assert abs(share - p) < 4 * (p * (1 - p) / 128) ** 0.5 + 1e-9


def test_logit_bias_forbids_and_forces(client):
    there = recorded("story")["float32"]["ids"][0]
    assert not plain(client, logit_bias={str(there): -100}).startswith(" there")
    assert plain(client, logit_bias={str(there): 100}, max_tokens=4) == " there" * 4


def test_penalties(client):
    loop = recorded("emoji")["ids"]  # greedily, this repeats one picture to the end

    def repeats(**fields):
        choice = client.completions.create(
            model=NAME, prompt=loop, temperature=0, max_tokens=40, extra_body={"return_token_ids": True, "ignore_eos": True, **fields}
        ).choices[0]
        ids = choice.token_ids
        return max(ids.count(i) for i in set(ids))

    repeated = repeats()
    assert repeats(frequency_penalty=2) < repeated
    assert repeats(repetition_penalty=1.5) < repeated
    assert repeats(presence_penalty=-2) > repeats(presence_penalty=2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 9, 14])
def test_stop_strings_across_tokens(client, stream, width):
    """Every cut of the known text, so that the stop string starts and ends inside tokens: it and what follows are
    never seen, and nothing else is missing."""
    whole = "".join(recorded("story")["float32"]["pieces"][:24])
    for start in (3, 11, 27):
        stop = whole[start:start + width]
        expected = whole[: whole.index(stop)]
        request = {"model": NAME, "prompt": STORY, "temperature": 0, "max_tokens": 24, "stop": [stop, "never said"]}
        if stream:
            chunks = list(client.completions.create(**request, stream=True))
            text, reason = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
        else:
            choice = client.completions.create(**request).choices[0]
            text, reason = choice.text, choice.finish_reason
        assert (text, reason) == (expected, "stop"), stop


def test_text_held_back_for_a_stop_string_comes_out(client):
    """The output ends in what could have become a stop string: it is not eaten."""
    whole = plain(client, max_tokens=10)
    assert plain(client, max_tokens=10, stop=whole[-6:] + "~") == whole


def test_stop_token_ids(client):
    entry = recorded("story")["float32"]
    fifth = entry["ids"][5]
    assert plain(client, stop_token_ids=[fifth]) == "".join(entry["pieces"][: entry["ids"].index(fifth)])


def test_end_tokens_min_tokens_and_ignore_eos(client):
    entry = recorded("capital")
    end = entry["float32"]["ids"].index(END)
    ended = complete(client, entry["ids"], max_tokens=32).choices[0]
    assert (ended.text, ended.finish_reason) == ("The capital of France is Paris.", "stop")
    longer = complete(client, entry["ids"], max_tokens=32, min_tokens=end + 6)
    assert longer.usage.completion_tokens >= end + 6
    assert longer.choices[0].text.startswith("The capital of France is Paris.")
    ignored = complete(client, entry["ids"], max_tokens=32, ignore_eos=True)
    assert ignored.choices[0].finish_reason == "length"
    assert ignored.usage.completion_tokens == 32
    assert ignored.choices[0].text == "".join(entry["float32"]["pieces"][:32])


def test_logprobs_are_of_a_distribution(client):
    scored = complete(client, STORY, max_tokens=6, logprobs=5).choices[0].logprobs
    assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.top_logprobs) == 6
    for token, logprob, top in zip(scored.tokens, scored.token_logprobs, scored.top_logprobs):
        assert len(top) == 5
        assert sum(map(exp, top.values())) <= 1 + 1e-4
        assert max(top.values()) == pytest.approx(top[token]) == pytest.approx(logprob)


def test_logprobs_agree_with_the_reference(float32_server):
    """The gap of the two best is the recorded one."""
    from conftest import client_of

    entry = recorded("story")
    with client_of(float32_server) as f32:
        scored = complete(f32, entry["ids"], max_tokens=16, logprobs=2).choices[0].logprobs
    for top, gap in zip(scored.top_logprobs, entry["float32"]["gaps"]):
        best, second = sorted(top.values(), reverse=True)
        assert best - second == pytest.approx(gap, abs=5e-3)  # activations are rounded to 16-bit codes


def test_chat_logprobs_have_bytes_that_make_the_text(client):
    entry = recorded("emoji")
    response = client.chat.completions.create(
        model=NAME, temperature=0, max_tokens=24, messages=entry["chat"], logprobs=True, top_logprobs=2
    )
    choice = response.choices[0]
    said = bytes(b for token in choice.logprobs.content for b in token.bytes)
    assert said.decode(errors="ignore").startswith(choice.message.content.rstrip("\ufffd"))
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_max_completion_tokens_and_max_tokens(client):
    messages = [{"role": "user", "content": CAPITAL}]
    for field in ("max_tokens", "max_completion_tokens"):
        response = client.chat.completions.create(model=NAME, temperature=0, messages=messages, **{field: 3})
        assert response.usage.completion_tokens == 3
        assert response.choices[0].finish_reason == "length"
