"""Memories over HTTP: documents, requests that use them, restarts, several servers, crashes."""
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from asking import at_once, golden, greedy
from conftest import client_of, running
from remembering import DOOR, add, body, complete, document, door, erase, flags, good, listed, refused, says, show
from serving import NAME, Server


@pytest.fixture(scope="module")
def minds(tmp_path_factory):
    more = ["--memory-document-tokens", "4000"]
    with running(*flags(tmp_path_factory.mktemp("memories"), *more)) as started:
        yield started


@pytest.fixture
def space(request):
    """A namespace of the test's own."""
    return request.node.name[:200]


def in_space(space, **fields):
    return {"namespaces": [space], **fields}


# Documents.


def test_add_list_show_delete(minds, space):
    added = add(minds, space, document("a", door(7392), kind="door", year=1999), door(5108))
    assert [d["id"] for d in added["data"]][0] == "a" and added["data"][1]["id"].startswith("mem_")
    assert added["data"][0]["n_tokens"] > 10 and added["data"][0]["status"] == "ready"
    assert added["usage"]["prompt_tokens"] > 40
    assert set(listed(minds, space)) == {d["id"] for d in added["data"]}
    shown = good(show(minds, space, "a", "text,tokens"))
    assert shown["text"] == door(7392) and shown["metadata"] == {"kind": "door", "year": 1999}
    assert len(shown["token_ids"]) == shown["n_tokens"] and not shown["stale"]
    assert "text" not in good(show(minds, space, "a", ""))
    spaces = good(minds.http.get("/v1/memories/namespaces"))["data"]
    assert {"documents": 2}.items() <= next(s for s in spaces if s["id"] == space).items()
    assert good(erase(minds, space, "a"))["deleted"]
    assert refused(erase(minds, space, "a"), 404, "id") is True
    assert refused(show(minds, space, "a"), 404, "id") is True
    assert "a" not in listed(minds, space)


@pytest.mark.parametrize("id", ["a/b", "a?b#c", "ü 雪 %41", "..", "../../etc/passwd", " ", "a+b&c=d"])
def test_any_id(minds, space, id):
    add(minds, space, document(id, door(7392)))
    assert listed(minds, space) == [id]
    if id != "..":  # which clients resolve before they ask
        assert good(show(minds, space, id))["id"] == id
    assert says(minds, in_space(space, ids=[id])) == " 7392"
    assert good(minds.http.delete("/v1/memories", params={"namespace": space}))["deleted"] == 1


@pytest.mark.parametrize("base", ["/v1/memories", f"/v1/models/{NAME}/memories", None])
def test_both_paths(minds, space, base):
    base = base or f"/v1/models/{minds.process.args[2]}/memories"  # the model's own id, with slashes
    body = {"namespace": space, "documents": [document("a", door(7392)), document("b", door(5108))]}
    if base == "/v1/memories":
        assert refused(minds.post(base, body), 400, "model") is True
        body["model"] = NAME
    assert len(good(minds.post(base, body))["data"]) == 2
    assert len(good(minds.http.get(base, params={"namespace": space}))["data"]) == 2
    assert good(minds.http.get(f"{base}/a", params={"namespace": space, "include": "text"}))["text"] == door(7392)
    assert any(s["id"] == space for s in good(minds.http.get(f"{base}/namespaces"))["data"])
    found = good(minds.post(f"{base}/query", {"model": NAME, "namespace": space, "input": "5108"}))["data"]
    assert {d["id"] for d in found} == {"a", "b"}
    assert good(minds.http.get(f"{base}/jobs"))["object"] == "list"
    assert good(minds.http.delete(f"{base}/a", params={"namespace": space}))["deleted"] is True
    assert good(minds.http.delete(base, params={"namespace": space}))["deleted"] == 1
    assert minds.http.head(base, params={"namespace": space}).status_code == 200
    assert minds.http.options(base).status_code == 204
    assert minds.http.put(base).status_code == 405
    assert minds.http.get("/v1/memories", params={"model": "another"}).status_code == 404


def test_pages_and_filters(minds, space):
    add(minds, space, *(document(f"{i:02}", f"Number {i}", even=i % 2 == 0, i=i) for i in range(7)))
    seen, after = [], ""
    while True:
        page = good(minds.http.get("/v1/memories", params={"namespace": space, "limit": 3, "after": after}))
        seen += [d["id"] for d in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen == [f"{i:02}" for i in range(7)]
    assert listed(minds, space, filter='{"even": true}') == ["00", "02", "04", "06"]
    assert listed(minds, space, filter='{"even": false, "i": {"gt": 2}}') == ["03", "05"]
    used = complete(minds, in_space(space, filter={"i": {"gte": 5}}))["memory"]["documents"]
    assert [d["id"] for d in used] == ["05", "06"]
    params = {"namespace": space, "filter": '{"even": true}'}
    assert good(minds.http.delete("/v1/memories", params=params))["deleted"] == 4
    assert listed(minds, space) == ["01", "03", "05"]


def test_replace_and_delete_act_at_once(minds, space):
    plain = says(minds)
    for code in ("7392", "5108"):
        add(minds, space, document("door", door(code)))
        assert says(minds, in_space(space)) == f" {code}"
    again = minds.post("/v1/memories", {
        "model": NAME, "namespace": space, "documents": [document("door", door(1))], "if_exists": "error",
    })  # fmt: skip
    assert refused(again, 409, "id") is True
    good(erase(minds, space, "door"))
    choice = complete(minds, in_space(space))
    assert choice["text"] == plain and choice["memory"]["tokens_searched"] == 0


def test_token_ids(minds, space):
    ids = good(minds.post("/tokenize", {"prompt": door(7392), "add_special_tokens": False}))["tokens"]
    add(minds, space, {"id": "a", "token_ids": ids})
    assert good(show(minds, space, "a"))["text"] == door(7392)
    assert says(minds, in_space(space)) == " 7392"


def test_packed_documents_behind_a_header(minds, space):
    """Each stands for itself, though they were read together."""
    documents = [document("lamp", "The lamp of the tower is green."), document("door", door(7392))]
    reads = minds.metric("mlx_parallm_memory_documents_read_total")
    added = add(minds, space, *documents, pack=True, header="Facts about an old house:\n")
    assert minds.metric("mlx_parallm_memory_documents_read_total") == reads + 1
    alone = [good(show(minds, space, d["id"], "tokens")) for d in documents]
    assert [d["n_tokens"] for d in added["data"]] == [len(d["token_ids"]) for d in alone]
    assert says(minds, in_space(space, ids=["door"])) == " 7392"
    assert says(minds, in_space(space, ids=["lamp"])) != " 7392"


# Requests.


def test_namespaces_are_apart(minds, space):
    add(minds, f"{space}/a", door(7392))
    add(minds, f"{space}/b", door(5108))
    assert says(minds, {"namespace": f"{space}/a"}) == " 7392"
    assert says(minds, {"namespaces": [f"{space}/b"]}) == " 5108"
    both = complete(minds, {"namespaces": [f"{space}/a", f"{space}/b"]})["memory"]
    assert [d["namespace"] for d in both["documents"]] == [f"{space}/a", f"{space}/b"]
    unknown = minds.post("/v1/completions", body({"namespaces": [f"{space}/a", f"{space}/c"]}))
    assert refused(unknown, 404, "memory.namespaces") is True
    assert f"{space}/a" not in unknown.text
    query = {"model": NAME, "namespace": f"{space}/c", "input": "door"}
    assert refused(minds.post("/v1/memories/query", query), 404, "namespaces") is True


def test_choosing_documents(minds, space):
    add(minds, space, document("door", door(7392)), document("rain", "It often rains in the hills of the north."))
    used = complete(minds, in_space(space, ids=["door"]))
    assert used["text"] == " 7392" and [d["id"] for d in used["memory"]["documents"]] == ["door"]
    assert refused(minds.post("/v1/completions", body(in_space(space, ids=["none"]))), 404, "memory.ids") is True
    nearest = complete(minds, in_space(space, max_documents=1))
    assert nearest["text"] == " 7392" and [d["id"] for d in nearest["memory"]["documents"]] == ["door"]
    found = good(minds.post("/v1/memories/query", {"model": NAME, "namespace": space, "input": DOOR, "top_k": 1}))["data"]
    assert [d["id"] for d in found] == ["door"] and found[0]["text"] == door(7392) and -1 <= found[0]["similarity"] <= 1


def test_inline_documents(minds, space):
    add(minds, space, document("rain", "It often rains in the hills of the north."))
    choice = complete(minds, {"inline": [{"text": door(7392)}]})
    assert choice["text"] == " 7392"
    assert choice["memory"]["documents"][0]["namespace"] is None
    both = complete(minds, in_space(space, inline=[document("mine", door(5108))]))
    assert both["text"] != says(minds, in_space(space))
    assert [d["id"] for d in both["memory"]["documents"]] == ["rain", "mine"]
    assert listed(minds, space) == ["rain"]


def test_how_memories_are_used(minds, space):
    add(minds, space, door(7392))
    plain = says(minds)
    assert says(minds, in_space(space, top_k=0)) == plain
    assert says(minds, in_space(space, layers=[])) == plain
    assert says(minds, in_space(space, similarity_threshold=1)) == plain
    for how in (
        {"top_k": 8}, {"top_k": 1 << 20}, {"layers": "all"}, {"layers": {"from": 2}}, {"rank": "dot"},
        {"position": "contiguous"}, {"similarity_threshold": -1}, {"top_k": 2, "block_tokens": 64},
    ):  # fmt: skip
        assert says(minds, in_space(space, **how)) == " 7392", how


def test_more_memories_where_it_is_unsure(minds, space):
    """A threshold that all steps pass is the larger top_k; one that none passes the smaller; between them each step is one."""
    add(minds, space, door(7392))
    add(minds, space, document("rain", "It often rains in the hills of the north."))
    ask = {"max_tokens": 24, "logprobs": 0, "ignore_eos": True}

    def numbers(top_k, entropy=None, **more):
        on = {"on_uncertainty": {"entropy": entropy, "extra_k": 14}} if entropy else {}
        choice = complete(minds, in_space(space, top_k=top_k, **on), **ask, **more)
        return choice["text"], choice["logprobs"]["token_logprobs"], choice["memory"].get("uncertain_steps")

    few, many = numbers(2), numbers(16)
    assert few[2] is None and few[1] != many[1]
    none, between = numbers(2, 100), numbers(2, 1.0)
    assert none[2] == 0 and none[0] == few[0] and all(abs(a - b) < 1e-3 for a, b in zip(none[1], few[1]))
    assert 0 < between[2] < 24
    # As the larger k from the prompt's last position on, while the prompt itself was read with the smaller.
    first = numbers(2, 1e-6)
    assert first[2] == 24
    before = minds.metric("mlx_parallm_uncertain_steps_total")
    whole = complete(minds, in_space(space, top_k=2, on_uncertainty={"entropy": 1e-6, "extra_k": 14}), n=2, **ask)
    assert whole["memory"]["uncertain_steps"] == 24
    assert minds.metric("mlx_parallm_uncertain_steps_total") >= before + 48
    # Beside others, drawn with a seed: as alone.
    bodies = [
        body(in_space(space, top_k=2, on_uncertainty={"entropy": e, "extra_k": 14}), temperature=1, seed=s, max_tokens=16)
        for e, s in [(0.5, 1), (1.0, 2), (1e-6, 3), (100, 4)]
    ]
    alone = [good(minds.post("/v1/completions", one))["choices"][0]["text"] for one in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = [good(answer) for answer in pool.map(lambda one: minds.post("/v1/completions", one), bodies)]
    assert [answer["choices"][0]["text"] for answer in together] == alone


def test_contiguous_is_the_text_in_the_prompt(minds, space):
    """Where every memory is used, and nothing stood before them that isn't kept."""
    tokens = [
        good(minds.post("/tokenize", {"prompt": text, "add_special_tokens": False}))["tokens"] for text in (door(7392), DOOR)
    ]
    add(minds, space, {"token_ids": tokens[0]}, add_bos=False)
    ask = {"max_tokens": 24, "logprobs": 0, "ignore_eos": True}
    inside = complete(minds, prompt=tokens[0] + tokens[1], **ask)
    beside = complete(minds, in_space(space, position="contiguous", top_k=1000), prompt=tokens[1], **ask)
    assert beside["text"] == inside["text"]
    pairs = zip(beside["logprobs"]["token_logprobs"], inside["logprobs"]["token_logprobs"])
    assert all(abs(a - b) < 1e-3 for a, b in pairs)


def test_plain_names(minds, space):
    add(minds, "default", document(space, door(7392)))
    add(minds, space, document("a", door(5108)), document("b", "It often rains in the hills of the north."))
    assert says(minds, memories=[space]) == " 7392"
    assert says(minds, use_memories=True, memories=[space], memory_topk=8) == " 7392"
    assert [d["id"] for d in complete(minds, memory_namespace=space)["memory"]["documents"]] == ["a", "b"]
    used = complete(minds, use_memories=True, memory_namespace=space, memories=["a"], memory_similarity_threshold=-1)
    assert used["text"] == " 5108" and [d["id"] for d in used["memory"]["documents"]] == ["a"]
    assert says(minds, memory_namespace=space, memory_topk=0) == says(minds)
    assert "memory" not in complete(minds, use_memories=False, memory_namespace=space)
    good(erase(minds, "default", space))


def test_openai_client(minds, space):
    """Chat, several choices, a stream: all through extra_body."""
    add(minds, space, door(7392))
    memory = {"memory": in_space(space)}
    ask = {"model": NAME, "temperature": 0}
    with client_of(minds) as client:
        messages = [{"role": "user", "content": "What is the code of the blue door? Repeat it."}]
        chat = client.chat.completions.create(**ask, messages=messages, max_tokens=32, n=3, extra_body=memory)
        assert len(chat.choices) == 3
        assert all("7392" in c.message.content for c in chat.choices)
        assert all(c.memory["documents"][0]["namespace"] == space for c in chat.choices)
        chunks = list(client.completions.create(**ask, prompt=DOOR, max_tokens=5, stream=True, n=2, extra_body=memory))
        for index in (0, 1):
            choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
            assert "".join(c.text for c in choices) == " 7392"
            assert [hasattr(c, "memory") for c in choices] == [False] * (len(choices) - 1) + [True]
        several = client.completions.create(**ask, prompt=[DOOR, "The code of the blue door is"], max_tokens=5, extra_body=memory)
        assert [c.text for c in several.choices] == [" 7392"] * 2
        with pytest.raises(openai.BadRequestError) as wrong:
            client.completions.create(**ask, prompt=["a", "b"], extra_body={"memory": in_space(space, max_documents=1)})
        assert wrong.value.param == "memory.max_documents"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(**ask, prompt="a", extra_body={"memory": {"namespace": "none"}})


def test_two_tenants_in_one_batch(minds, space):
    """Many at once, streamed and not; each gets its own code, those without memories none."""
    codes = {"a": "7392", "b": "5108", "c": "6047"}
    for tenant, code in codes.items():
        add(minds, f"{space}/{tenant}", document("door", door(code)))
    plain = says(minds)
    jobs, expected = [], []
    for i in range(96):
        tenant = "abc-"[i % 4]
        memory = {"memory": in_space(f"{space}/{tenant}")} if tenant != "-" else {}
        request = {"model": NAME, "prompt": DOOR, "temperature": 0, "max_tokens": 5, "extra_body": memory}
        jobs.append((request, i % 8 < 4))
        expected.append(f" {codes[tenant]}" if tenant != "-" else plain)
    assert at_once(minds, jobs) == expected


def test_without_memories_nothing_changes(minds, float32_server):
    """Token by token, log probabilities too: as a server without the flag, to the last bit."""
    for entry in golden():
        request = greedy(entry, 16)
        own = request.pop("extra_body")
        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        request |= own | ({"logprobs": True, "top_logprobs": 5} if "messages" in request else {"logprobs": 5})
        with_flag, without = (good(s.post(path, request))["choices"] for s in (minds, float32_server))
        assert with_flag == without, entry["name"]


def test_prefix_reuse_keeps_memories_apart(minds, space):
    """The same prompt with other memories shares none of its KV; with the same it does."""
    add(minds, f"{space}/a", door(7392))
    add(minds, f"{space}/b", door(5108))

    def cached(memory):
        answer = good(minds.post("/v1/completions", body(memory, prompt=f"({space}) {DOOR}")))
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(in_space(f"{space}/a")) == (" 7392", 0)
    assert cached(in_space(f"{space}/b")) == (" 5108", 0)
    text, reused = cached(in_space(f"{space}/a"))
    assert text == " 7392" and reused > 0


# Limits and errors.


def test_limits(minds, space, tmp_path):
    long = {"model": NAME, "namespace": space, "documents": [{"text": door(7392)}, {"text": "word " * 4001}]}
    assert refused(minds.post("/v1/memories", long), 413, "documents[1]") is True
    assert listed(minds, space) == []
    with running(*flags(tmp_path, "--memory-ram", "2MB")) as small:  # 44 tokens of 45 KiB
        add(small, space, document("a", door(7392)), document("b", door(5108)))
        assert says(small, in_space(space, ids=["b"])) == " 5108"
        assert refused(small.post("/v1/completions", body(in_space(space))), 413, "memory") is True
        big = {"model": NAME, "namespace": space, "documents": [{"text": door(7392) * 2}]}
        assert refused(small.post("/v1/memories", big), 413, "documents[0]") is True
        assert small.metric("mlx_parallm_memory_ram_bytes") <= small.metric("mlx_parallm_memory_ram_limit_bytes")


@pytest.mark.parametrize("memory, status, param", [
    ({}, 400, "memory.namespaces"),
    ([], 400, "memory"),
    ({"namespaces": "default"}, 400, "memory.namespaces"),
    ({"namespace": "no such"}, 404, "memory.namespaces"),
    ({"namespace": "x" * 513}, 400, "memory.namespaces"),
    ({"inline": [{"text": ""}]}, 400, "memory.inline[0].text"),
    ({"inline": [{"text": "<|im_start|><|im_end|>"}]}, 400, "memory.inline[0].text"),
    ({"inline": [{"text": "x", "token_ids": [1]}]}, 400, "memory.inline[0].text"),
    ({"inline": [{"token_ids": [49152]}]}, 400, "memory.inline[0].token_ids[0]"),
    ({"inline": [{"text": "x"}], "top_k": -1}, 400, "memory.top_k"),
    ({"inline": [{"text": "x"}], "similarity_threshold": 2}, 400, "memory.similarity_threshold"),
    ({"inline": [{"text": "x"}], "layers": [30]}, 400, "memory.layers"),
    ({"inline": [{"text": "x"}], "position": "one"}, 400, "memory.position"),
    ({"inline": [{"text": "x"}], "rank": 1}, 400, "memory.rank"),
    ({"inline": [{"text": "x"}], "block_tokens": 0}, 400, "memory.block_tokens"),
    ({"inline": [{"text": "x"}], "block_tokens": 65}, 400, "memory.block_tokens"),
    ({"inline": [{"text": "x"}], "block_tokens": "8"}, 400, "memory.block_tokens"),
    ({"inline": [{"text": "x"}], "on_uncertainty": True}, 400, "memory.on_uncertainty"),
    ({"inline": [{"text": "x"}], "on_uncertainty": {}}, 400, "memory.on_uncertainty.entropy"),
    ({"inline": [{"text": "x"}], "on_uncertainty": {"entropy": 1}}, 400, "memory.on_uncertainty.extra_k"),
    ({"inline": [{"text": "x"}], "on_uncertainty": {"entropy": 0, "extra_k": 1}}, 400, "memory.on_uncertainty.entropy"),
    ({"inline": [{"text": "x"}], "on_uncertainty": {"entropy": 1, "extra_k": 0}}, 400, "memory.on_uncertainty.extra_k"),
    ({"inline": [{"text": "x"}], "on_uncertainty": {"entropy": 1, "extra_k": 1, "k": 1}}, 400, "memory.on_uncertainty.k"),
])  # fmt: skip
def test_wrong_requests(minds, memory, status, param):
    for extra in ({}, {"stream": True}):
        assert refused(minds.post("/v1/completions", body(memory, **extra)), status, param) is True
    chat = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "memory": memory}
    assert refused(minds.post("/v1/chat/completions", chat), status, param) is True


@pytest.mark.parametrize("fields, status, param", [
    ({"documents": []}, 400, "documents"),
    ({"documents": [{"text": ""}]}, 400, "documents[0].text"),
    ({"documents": [{"text": "<|im_start|>"}]}, 400, "documents[0].text"),
    ({"documents": [{"text": "a", "token_ids": [5]}]}, 400, "documents[0].text"),
    ({"documents": [{"id": "a"}]}, 400, "documents[0].text"),
    ({"documents": [{"token_ids": [49152]}]}, 400, "documents[0].token_ids[0]"),
    ({"documents": [{"text": "a", "id": "x" * 513}]}, 400, "documents[0].id"),
    ({"documents": [{"text": "a", "id": "a\0b"}]}, 400, "documents[0].id"),
    ({"documents": [{"text": "a", "metadata": {"a": [1]}}]}, 400, "documents[0].metadata"),
    ({"documents": [{"text": "a", "metadata": {"a": "x" * 20_000}}]}, 400, "documents[0].metadata"),
    ({"documents": [{"text": "a"}], "stride": 0}, 400, "stride"),
    ({"documents": [{"text": "a"}], "stride": 20, "max_length": 10}, 400, "stride"),
    ({"documents": [{"text": "a"}], "max_length": 1 << 20}, 400, "max_length"),
    ({"documents": [{"text": "a"}], "header": "word " * 1100}, 400, "header"),
    ({"documents": [{"text": "a"}], "namespace": ""}, 400, "namespace"),
    ({"documents": [{"text": "a"}], "model": "another"}, 404, "model"),
])  # fmt: skip
def test_wrong_documents(minds, space, fields, status, param):
    response = minds.post("/v1/memories", {"model": NAME, "namespace": space, **fields})
    assert refused(response, status, param) is True
    assert listed(minds, space) == []


def test_a_text_that_is_no_utf8(minds):
    response = minds.http.post("/v1/memories", content=b'{"model": "smol", "documents": [{"text": "\xff"}]}')
    assert response.status_code == 400 and "not valid JSON" in response.text


def test_contiguous_memories_take_context(minds, space):
    context = good(minds.http.get("/v1/models"))["data"][0]["max_model_len"]
    add(minds, space, "word " * 3000)
    ask = body(in_space(space, position="contiguous"), max_tokens=context - 2000)
    response = minds.post("/v1/completions", ask)
    assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"


def test_a_server_without_the_flag(server):
    assert refused(server.post("/v1/completions", body({"namespace": "a"})), 400, "memory") is True
    assert refused(server.post("/v1/completions", body(use_memories=True)), 400, "use_memories") is True
    assert server.post("/v1/completions", body(memory=None, max_tokens=1)).status_code == 200
    for response in (server.http.get("/v1/memories"), server.http.get(f"/v1/models/{NAME}/memories")):
        assert response.status_code == 400 and "--use-extended-mind" in response.text


# Jobs.


def job_of(server, id):
    return good(server.http.get(f"/v1/memories/jobs/{id}"))


def wait_job(server, id, limit=120):
    end = time.monotonic() + limit
    while (job := job_of(server, id))["status"] in ("queued", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.02)
    return job


def test_a_background_job(minds, space):
    texts = [f"{i}. " + door(1000 + i) * 20 for i in range(4)]
    job = add(minds, space, *(document(str(i), t) for i, t in enumerate(texts)), background=True)
    assert job["object"] == "memory.job" and job["documents"]["total"] == 4
    seen = set()
    while (now := job_of(minds, job["id"]))["status"] != "completed":
        assert now["status"] in ("queued", "running"), now
        # What it says is done is there, whole.
        for done in now["data"]:
            assert good(show(minds, space, done["id"]))["text"] == texts[int(done["id"])]
        seen.add(now["tokens"]["done"])
        assert says(minds, {"inline": [{"text": door(7392)}]}) == " 7392"  # answers go on meanwhile
    total = now["tokens"]["total"]
    assert any(0 < tokens < total for tokens in seen) and max(seen) <= total
    assert now["tokens"]["done"] == now["tokens"]["total"] and now["documents"]["done"] == 4
    assert listed(minds, space) == list("0123")
    jobs = good(minds.http.get("/v1/memories/jobs"))["data"]
    assert jobs[0]["id"] == job["id"] and "data" not in jobs[0]


def test_cancelling_jobs(minds, space):
    long = door(7392) * 120
    first = add(minds, space, *(document(f"first{i}", long) for i in range(3)), background=True)
    second = add(minds, space, document("second", long), background=True)
    assert good(minds.http.delete(f"/v1/memories/jobs/{second['id']}"))["status"] == "cancelled"
    good(minds.http.delete(f"/v1/memories/jobs/{first['id']}"))
    ended = wait_job(minds, first["id"])
    assert ended["status"] == "cancelled" and ended["documents"]["done"] < 3
    assert listed(minds, space) == [d["id"] for d in ended["data"]]
    assert minds.http.delete(f"/v1/memories/jobs/{first['id']}").status_code == 409
    assert minds.http.get("/v1/memories/jobs/none").status_code == 404


def test_who_leaves_does_not_end_the_reading(minds, space):
    with pytest.raises(Exception):
        minds.post(
            "/v1/memories", {"model": NAME, "namespace": space, "documents": [document("a", door(7392) * 40)]}, timeout=0.2
        )
    end = time.monotonic() + 60
    while not listed(minds, space):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_requests_with_memories_are_counted(minds, space):
    name = "mlx_parallm_memory_requests_total"
    add(minds, space, door(7392))
    before = minds.metric(name)
    says(minds, in_space(space))
    says(minds)
    assert minds.metric(name) == before + 1
    assert minds.metric("mlx_parallm_memory_jobs") == 0
    debug = good(minds.http.get("/debug/metrics"))["memory"]
    assert debug["memory_requests_total"] == before + 1


# Processes.


def test_a_restart_keeps_documents(tmp_path):
    with running(*flags(tmp_path)) as first:
        add(first, "a", document("door", door(7392)))
    with running(*flags(tmp_path)) as second:
        assert says(second, {"namespace": "a"}) == " 7392"
        assert second.metric("mlx_parallm_memory_documents_read_total") == 0  # its keys and values were kept
        assert second.metric("mlx_parallm_memory_documents_loaded_total") == 1
        assert not good(show(second, "a", "door"))["stale"]
    with running(*flags(tmp_path, "--dtype", "bfloat16")) as other:  # other keys and values: never mixed
        assert good(show(other, "a", "door"))["stale"]
        assert says(other, {"namespace": "a"}) == " 7392"
        assert other.metric("mlx_parallm_memory_documents_read_total") == 1
        assert "read again" in other.log
    with running(*flags(tmp_path)) as again:  # both are kept
        assert says(again, {"namespace": "a"}) == " 7392"
        assert again.metric("mlx_parallm_memory_documents_read_total") == 0


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_an_altered_tensor_file(tmp_path, how):
    with running(*flags(tmp_path)) as first:
        add(first, "a", document("door", door(7392)))
    (file,) = tmp_path.glob("tensors/*/*/*.safetensors")
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if how == "changed" else data[: len(data) // 2])
    for reads in (1, 0):  # read again, and kept again
        with running(*flags(tmp_path)) as second:
            assert says(second, {"namespace": "a"}) == " 7392"
            assert second.metric("mlx_parallm_memory_documents_read_total") == reads
            assert ("SHA-256" in second.log) == (how != "gone" and reads == 1)


def test_two_servers_on_one_store(tmp_path):
    with running(*flags(tmp_path)) as one, running(*flags(tmp_path)) as two:
        add(one, "a", document("door", door(7392)))
        assert says(two, {"namespace": "a"}) == " 7392"
        add(two, "a", document("door", door(5108)))
        assert says(one, {"namespace": "a"}) == " 5108"
        good(erase(one, "a", "door"))
        assert complete(two, {"namespace": "a"})["memory"]["tokens_searched"] == 0


def test_killed_while_it_reads(tmp_path):
    """`kill -9` at several moments: each document is whole or not there, and the next server starts."""
    texts = {f"{i:02}": f"{i}. " + door(1000 + i) * (i % 3 * 4 + 1) for i in range(24)}
    whole = set()
    for moment in (0.05, 0.4, 1.2):
        server = Server(*flags(tmp_path))
        job = add(server, "a", *(document(id, t) for id, t in texts.items() if id not in whole), background=True)
        time.sleep(moment)
        reported = {d["id"] for d in job_of(server, job["id"])["data"]}
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        with running(*flags(tmp_path)) as again:
            there = set(listed(again, "a"))
            assert whole | reported <= there
            for id in there:
                assert good(show(again, "a", id))["text"] == texts[id]
            for id in sorted(there - whole)[-2:]:
                choice = complete(again, {"namespace": "a", "ids": [id]})
                assert len(choice["memory"]["documents"]) == 1
                assert choice["text"] == says(again, {"inline": [{"text": texts[id]}]})  # what reading it now says
            whole = there
    assert whole


def test_the_end_cancels_jobs_and_keeps_what_is_done(tmp_path):
    server = Server(*flags(tmp_path, "--drain-seconds", "1"))
    job = add(server, "a", document("0", door(7392)), *(document(str(i), door(i) * 150) for i in range(1, 9)), background=True)
    while not job_of(server, job["id"])["data"]:
        time.sleep(0.02)
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 15
    with running(*flags(tmp_path)) as again:
        assert "0" in listed(again, "a")
        assert says(again, {"namespace": "a", "ids": ["0"]}) == " 7392"


def test_a_store_that_is_not_there():
    for address, said in (("redis://127.0.0.1:1/0", "127.0.0.1:1"), ("nosuch:/x", "nosuch")):
        server = Server(*flags("", "--memory-store", address), ready=False)
        assert server.process.wait(60) not in (0, -6, -11)
        assert said in server.log
        server.http.close()


def test_a_client_that_leaves_while_its_documents_are_read(tmp_path):
    """Its request ends, and nobody else's waits for it."""
    with running(*flags(tmp_path)) as server:
        inline = {"inline": [{"text": door(7392) * 100}]}

        def leave():
            with pytest.raises(Exception):
                server.post("/v1/completions", body(inline), timeout=0.3)

        threads = [threading.Thread(target=leave) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert says(server) and says(server, {"inline": [{"text": door(5108)}]}) == " 5108"
        for thread in threads:
            thread.join()
        assert server.wait_idle(60)
