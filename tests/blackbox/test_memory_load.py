"""Documents that come, change and go while many requests use them: each answer has one state of them.

PARALLM_LOAD_SECONDS=1200 makes it last 20 minutes; `-s` shows what was seen.
"""
import itertools
import os
import random
import threading
import time
from collections import Counter

import pytest

from conftest import running
from remembering import DOOR, add, body, document, door, flags, good, says
from serving import NAME

SECONDS = float(os.environ.get("PARALLM_LOAD_SECONDS", 20))
VERSIONS = 8  # that follow one another, and begin again
GROUP = 5


def pair_text(version):
    """Another one, and of another length, for each version."""
    return "So it is. " * version + door(1000 + 111 * version)


def resident(server):
    """Bytes of RAM that the process has."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


class Load:
    """Writers and readers in threads, until the time is over or one has seen what may not be."""

    def __init__(self, server, seconds):
        self.server, self.end = server, time.monotonic() + seconds
        self.failures, self.counts, self.seen = [], Counter(), {}
        self.lock = threading.Lock()
        self.lengths = {}  # n_tokens of a document of the pair: its version

    def goes_on(self):
        return time.monotonic() < self.end and not self.failures

    def fail(self, *what):
        with self.lock:
            self.failures.append(what)

    def run(self, *loops):
        def guarded(loop, seed):
            try:
                loop(random.Random(seed))
            except Exception as error:
                self.fail(loop.__name__, repr(error))

        threads = [threading.Thread(target=guarded, args=(loop, seed)) for seed, loop in enumerate(loops)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # Writers.

    def prepare(self):
        for version in range(VERSIONS):
            added = add(self.server, "lengths", document(str(version), pair_text(version)))
            self.lengths[added["data"][0]["n_tokens"]] = version
        assert len(self.lengths) == VERSIONS
        for tenant in range(4):
            add(self.server, f"tenant{tenant}", document("door", door(4000 + tenant)))
        self.replace_pair(0)
        add(self.server, "group", document("g0", "Nothing yet."))

    def replace_pair(self, version):
        for id in ("first", "second"):
            add(self.server, "pair", document(id, pair_text(version)))

    def replacing(self, rng):
        """The second of a pair follows the first: nobody may see it before, or two versions behind."""
        for version in itertools.cycle([*range(1, VERSIONS), 0]):
            if not self.goes_on():
                return
            self.replace_pair(version)
            self.counts["replaced"] += 1

    def growing(self, rng):
        """A group whose members come one after another, and go all at once."""
        while self.goes_on():
            good(self.server.http.delete("/v1/memories", params={"namespace": "group"}))
            add(self.server, "group", *(document(f"g{i}", f"Number {i} is here. " * (i + 1)) for i in range(GROUP)))
            self.counts["groups"] += 1

    def noise(self, rng):
        """Long documents in the background, of which some are cancelled, and deletions."""
        while self.goes_on():
            texts = (document(f"{rng.randrange(6)}.{i}", f"{i} " + door(i) * rng.randrange(1, 8)) for i in range(3))
            job = add(self.server, "noise", *texts, background=True, pack=rng.random() < 0.5)
            time.sleep(rng.random() / 2)
            if rng.random() < 0.3:
                assert self.server.http.delete(f"/v1/memories/jobs/{job['id']}").status_code in (200, 409)
            if rng.random() < 0.3:
                good(self.server.http.delete("/v1/memories", params={"namespace": "noise"}))
            while (state := good(self.server.http.get(f"/v1/memories/jobs/{job['id']}"))["status"]) in ("queued", "running"):
                time.sleep(0.05)
            assert state in ("completed", "cancelled"), state
            self.counts["jobs"] += 1

    # Readers.

    def reading(self, rng):
        while self.goes_on():
            kind = rng.choice(("pair", "pair", "group", "tenant", "tenant", "both", "inline", "plain", "noise"))
            getattr(self, f"ask_{kind}")(rng)
            with self.lock:
                self.counts[kind] += 1

    def ask(self, memory, **fields):
        while (response := self.server.post("/v1/completions", body(memory, **fields))).status_code == 429:
            self.counts["busy"] += 1  # no room beside running requests
            time.sleep(0.05)
        if response.status_code != 200:
            self.fail(memory, response.status_code, response.text)
            return []
        choices = response.json()["choices"]
        if any((c["text"], c.get("memory")) != (choices[0]["text"], choices[0].get("memory")) for c in choices):
            self.fail(memory, "choices differ", choices)
        return choices[:1]

    def says_always(self, key, choice):
        """What a state says, it says always."""
        with self.lock:
            known = self.seen.setdefault(key, choice["text"])
        if known != choice["text"]:
            self.fail(key, known, choice["text"])

    def pair_state(self, documents):
        state = {d["id"]: self.lengths.get(d["n_tokens"]) for d in documents if d["namespace"] == "pair"}
        if set(state) != {"first", "second"} or (state["first"] - state["second"]) % VERSIONS not in (0, 1):
            self.fail("pair", documents)
        return state["first"], state["second"]

    def group_state(self, documents):
        ids = [d["id"] for d in documents if d["namespace"] == "group"]
        if ids != [f"g{i}" for i in range(len(ids))]:
            self.fail("group", documents)
        return len(ids)

    def ask_pair(self, rng):
        for choice in self.ask({"namespace": "pair"}, n=rng.choice((1, 2))):
            self.says_always(("pair", *self.pair_state(choice["memory"]["documents"])), choice)

    def ask_group(self, rng):
        for choice in self.ask({"namespace": "group"}):
            self.group_state(choice["memory"]["documents"])

    def ask_both(self, rng):
        for choice in self.ask({"namespaces": ["pair", "group"], "top_k": 8}):
            documents = choice["memory"]["documents"]
            self.pair_state(documents)
            self.group_state(documents)

    def ask_tenant(self, rng):
        tenant = rng.randrange(4)
        for choice in self.ask({"namespace": f"tenant{tenant}"}):
            if choice["text"] != f" {4000 + tenant}" or [d["id"] for d in choice["memory"]["documents"]] != ["door"]:
                self.fail("tenant", tenant, choice)

    def ask_inline(self, rng):
        code = rng.randrange(5000, 5040)
        for choice in self.ask({"inline": [{"text": door(code)}]}):
            self.says_always(("inline", code), choice)
            if choice["memory"]["documents"][0]["namespace"] is not None:
                self.fail("inline", choice)

    def ask_plain(self, rng):
        for choice in self.ask(None):
            self.says_always("plain", choice)

    def ask_noise(self, rng):
        """Answers of documents that come and go: an answer is all that is asked. It leaves, at times, in the middle."""
        ask = body({"namespaces": ["pair", "noise"], "max_documents": 3}, stream=True, max_tokens=20)
        with self.server.http.stream("POST", "/v1/completions", json=ask) as response:
            if response.status_code == 429:
                self.counts["busy"] += 1
                return
            if response.status_code == 200 and rng.random() < 0.5:
                next(response.iter_lines(), None)
                return
            lines = list(response.iter_lines()) if response.status_code == 200 else []
            if "data: [DONE]" not in lines[-2:]:
                self.fail("noise", response.status_code, response.read() if response.status_code != 200 else lines)


@pytest.mark.timeout(SECONDS + 300)
def test_a_mixed_load(tmp_path):
    small = ["--memory-ram", "48MB"]  # some 1,100 tokens: documents leave RAM and come back
    with running(*flags(tmp_path, *small)) as server:
        load = Load(server, SECONDS)
        load.prepare()
        add(server, "noise", "Nothing yet.")
        sizes = []

        def watching(rng):
            while load.goes_on():
                sizes.append(resident(server))
                time.sleep(min(5, SECONDS / 20))

        load.run(load.replacing, load.growing, load.noise, watching, *[load.reading] * 10)
        print(dict(load.counts), f"RSS {sizes[0] >> 20} to {max(sizes) >> 20} MiB, at last {sizes[-1] >> 20}")
        assert not load.failures, load.failures[:5]
        assert load.counts["busy"] < load.counts["noise"], load.counts
        assert min(load.counts[k] for k in ("replaced", "groups", "jobs", "pair", "tenant", "plain")) >= 3, load.counts
        half = len(sizes) // 2
        assert max(sizes[half:]) < max(sizes[:half]) + (128 << 20), sizes
        assert server.wait_idle()
        assert server.metric("mlx_parallm_memory_ram_bytes") <= server.metric("mlx_parallm_memory_ram_limit_bytes")

        # The same states, one by one on a quiet server, say the same.
        for key, text in load.seen.items():
            if key == "plain":
                assert says(server) == text
            elif key[0] == "inline":
                assert says(server, {"inline": [{"text": door(key[1])}]}) == text
            else:
                add(server, "again", document("first", pair_text(key[1])), document("second", pair_text(key[2])))
                assert says(server, {"namespace": "again"}) == text, key

        while server.metric("mlx_parallm_memory_jobs"):
            time.sleep(0.1)
        documents = sum(s["documents"] for s in good(server.http.get("/v1/memories/namespaces"))["data"])
        assert len(list(tmp_path.glob("tensors/*/*/*.safetensors"))) == documents  # nothing is left of what went
