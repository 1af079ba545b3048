"""The real model says what mlx-lm says, alone and in company.

float32: token for token with the recorded reference; another token is accepted only where the reference's two best
logits are within 1e-3 of each other, and is printed. In company (32 in flight, random order, sampling neighbours of
every kind, streamed or not) nothing is accepted: the texts are the server's own, alone, character for character.
"""
import random
from os.path import commonprefix

import pytest
from conftest import client_of

from asking import ask, at_once, complete, golden, greedy, neighbours, recorded, said

NAMES = [entry["name"] for entry in golden()]
CLOSE = 1e-3


def difference(entry, text):
    """None where `text` is the recorded one; else (position, gap) of the token that may have been another. The
    character that differs names the token up to one: the token before may be a prefix of what was said instead, and
    silent tokens (special, or part of a character) lie between."""
    expected = said(entry).rstrip("\ufffd")  # the last token may end inside a character
    text = text.rstrip("\ufffd")
    if text == expected:
        return None
    at = len(commonprefix([text, expected]))
    pieces, gaps = entry["float32"]["pieces"], entry["float32"]["gaps"]
    end, last = 0, 0
    for last, piece in enumerate(pieces):
        end += len(piece)
        if end > at:
            break
    first = last
    while first > 0 and not pieces[first - 1]:
        first -= 1
    first = max(0, first - 1)
    gap, position = min((gaps[i], i) for i in range(first, last + 1))
    return position, gap


def in_company(server, alone, seed):
    rng = random.Random(seed)
    jobs = [(name, greedy(recorded(name)), i % 2 == 0) for i, name in enumerate(NAMES)]
    jobs += [(None, request, i % 3 == 0) for i, request in enumerate(neighbours(20, seed))]
    rng.shuffle(jobs)
    texts = at_once(server, [(request, stream) for _, request, stream in jobs])
    for (name, _, stream), text in zip(jobs, texts):
        if name:
            assert text == alone[name], f"{name}, {'streamed' if stream else 'whole'}"


@pytest.fixture(scope="module")
def alone(float32_server):
    with client_of(float32_server) as client:
        return {name: ask(client, greedy(recorded(name))) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_float32_equals_the_reference(alone, name):
    entry = recorded(name)
    found = difference(entry, alone[name])
    if found:
        position, gap = found
        print(f"{name}: differs at token {position}, where the reference's gap is {gap}")
        print(f"  reference {said(entry)!r}\n  here      {alone[name]!r}")
        assert gap < CLOSE


def test_in_company_equals_alone_in_float32(float32_server, alone):
    in_company(float32_server, alone, seed=1)


def test_in_company_equals_alone(server, client):
    alone = {name: ask(client, greedy(recorded(name))) for name in NAMES}
    in_company(server, alone, seed=2)
    in_company(server, alone, seed=3)


def test_the_prompt_is_tokenized_as_the_reference_does(client):
    for entry in golden():
        if "chat" in entry:
            counted = client.chat.completions.create(**{**greedy(entry), "max_tokens": 1})
        else:
            counted = complete(client, entry["text"], max_tokens=1)
        assert counted.usage.prompt_tokens == len(entry["ids"]), entry["name"]


def test_token_ids_give_the_same_text_as_the_string(client):
    for name in ("story", "digits", "russian"):
        entry = recorded(name)
        by_ids, by_text = (complete(client, p, max_tokens=24) for p in (entry["ids"], entry["text"]))
        assert by_ids.choices[0].text == by_text.choices[0].text
