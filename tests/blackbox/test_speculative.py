"""Guessed tokens change no answer, greedy or sampled, alone or in company, whoever guesses; and they are right often."""
import pytest
from conftest import client_of, running

from asking import ask, at_once, golden, greedy, neighbours
from serving import Server, model

JOBS = [(greedy(entry), i % 2 == 0) for i, entry in enumerate(golden())] + [(n, False) for n in neighbours(12, seed=3)]


@pytest.fixture(scope="module")
def expected():
    with running("--speculative", "none", "--max-batch-size", "32") as plain:
        texts = at_once(plain, JOBS)
        assert plain.metric("vllm:spec_decode_num_draft_tokens_total") == 0
        return texts


@pytest.mark.parametrize("flags", [[], ["--speculative", "ngram"], ["--draft-model", model(), "--num-draft-tokens", "3"]])
def test_texts_are_those_without_guesses(start, expected, flags):
    with start(*flags) as guessing:
        assert at_once(guessing, JOBS, in_flight=2) == expected
        assert guessing.metric("vllm:spec_decode_num_draft_tokens_total") > 0
        assert at_once(guessing, JOBS) == expected


def test_a_text_that_repeats_itself_takes_fewer_steps(start):
    with start("--speculative", "ngram") as guessing, client_of(guessing) as client:
        rows = "".join(f'{{"city": "Rome", "year": {year}, "open": true}}\n' for year in range(1990, 2000))
        ask(client, greedy({"text": rows}, 100))
        right = guessing.metric("vllm:spec_decode_num_accepted_tokens_total")
        assert right <= guessing.metric("vllm:spec_decode_num_draft_tokens_total")
        assert guessing.metric("mlx_parallm_decode_steps_total") == 99 - right  # the prompt's step gives the first
        assert right > 40


def test_a_count_of_guesses_that_nobody_makes_is_named():
    alone = Server("--speculative", "none", "--num-draft-tokens", "3", ready=False)
    assert alone.process.wait(60) != 0
    assert "guesses need speculative auto or ngram, or a draft model" in alone.log


def test_flags_that_exclude_each_other_are_named():
    both = Server("--speculative", "ngram", "--draft-model", model(), ready=False)
    assert both.process.wait(60) != 0
    assert "either a draft model guesses or the text itself" in both.log
