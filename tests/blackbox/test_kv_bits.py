"""--kv-bits: more context in the same memory, the same texts in any company."""
import random

import pytest
from conftest import client_of

from asking import ask, at_once, golden, greedy, neighbours
from serving import Server

MEMORY = ["--kv-cache-memory", "40MB", "--max-batch-size", "8"]


@pytest.mark.parametrize("bits, more", [("8", 1.7), ("4", 3)])
def test_more_tokens_fit_and_company_changes_nothing(start, bits, more):
    with start(*MEMORY) as plain:
        blocks = plain.metric("mlx_parallm_kv_blocks_total")
    with start(*MEMORY, "--kv-bits", bits) as coded, client_of(coded) as client:
        assert coded.metric("mlx_parallm_kv_blocks_total") > more * blocks
        requests = [greedy(entry) for entry in golden()[:8]]
        alone = [ask(client, request) for request in requests]
        if bits == "8":
            assert "Paris" in alone[0]
        jobs = [(i, request) for i, request in enumerate(requests)] + [(None, r) for r in neighbours(8, seed=5)]
        random.Random(1).shuffle(jobs)
        for (i, _), text in zip(jobs, at_once(coded, [(request, False) for _, request in jobs])):
            assert i is None or text == alone[i]


def test_other_widths_are_refused():
    server = Server("--kv-bits", "5", ready=False)
    assert server.process.wait(60) != 0
    assert "--kv-bits" in server.log
