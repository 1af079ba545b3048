"""Streaming with the real client, sync and async: the chunks, usage, n, many at once, and clients that leave."""
import asyncio
import json
import time

from asking import CAPITAL, STORY, ask, async_client, at_once, complete, greedy, recorded
from serving import NAME

MESSAGES = [{"role": "user", "content": CAPITAL}]


def test_chat_stream(client):
    chunks = list(client.chat.completions.create(model=NAME, temperature=0, messages=MESSAGES, stream=True))
    assert len({c.id for c in chunks}) == 1 and {c.object for c in chunks} == {"chat.completion.chunk"}
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "The capital of France is Paris."
    assert [c.choices[0].finish_reason for c in chunks][-1] == "stop"
    assert len(chunks) > 5 and all(c.usage is None for c in chunks)


def test_the_usage_chunk_is_last_and_has_no_choice(client):
    for make, body in (
        (client.chat.completions.create, {"messages": MESSAGES}),
        (client.completions.create, {"prompt": STORY, "max_tokens": 5}),
    ):
        whole = make(model=NAME, temperature=0, **body)
        stream = make(model=NAME, temperature=0, stream=True, stream_options={"include_usage": True}, **body)
        *chunks, last = list(stream)
        assert last.choices == [] and all(c.usage is None and c.choices for c in chunks)
        assert last.usage.total_tokens == whole.usage.total_tokens
        assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_n_choices_stream_together(client):
    request = {"model": NAME, "prompt": STORY, "n": 4, "seed": 3, "temperature": 1.2, "max_tokens": 16}
    whole = client.completions.create(**request)
    texts, ended = {}, set()
    for chunk in client.completions.create(**request, stream=True):
        for choice in chunk.choices:
            assert choice.index not in ended
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ended.add(choice.index)
    assert ended == {0, 1, 2, 3}
    assert [texts[i] for i in range(4)] == [c.text for c in whole.choices]


def test_several_prompts_stream_together(client):
    prompts = [STORY, "Once", "def f(x):"]
    whole = complete(client, prompts, max_tokens=8)
    texts = [""] * 3
    stream = client.completions.create(model=NAME, prompt=prompts, temperature=0, max_tokens=8, stream=True)
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]


def test_characters_are_whole(client):
    """A token may be a part of a character: no chunk has a replacement character in it."""
    for name in ("emoji", "chinese", "arabic"):
        request = {**greedy(recorded(name)), "stream": True}
        make = client.chat.completions if "messages" in request else client.completions
        parts = []
        for chunk in make.create(**request):
            choice = chunk.choices[0]
            parts.append((choice.delta.content or "") if hasattr(choice, "delta") else choice.text)
        assert "\ufffd" not in "".join(parts).rstrip("\ufffd"), name


def test_the_wire_is_server_sent_events(server):
    body = {"model": NAME, "prompt": STORY, "max_tokens": 4, "temperature": 0, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    assert "".join(json.loads(e[6:])["choices"][0]["text"] for e in events) == ask_text(server)


def ask_text(server):
    body = {"model": NAME, "prompt": STORY, "max_tokens": 4, "temperature": 0}
    return server.post("/v1/completions", body).json()["choices"][0]["text"]


def test_64_at_once(server, client):
    request = {"model": NAME, "prompt": STORY, "temperature": 0, "max_tokens": 16}
    expected = ask(client, request)
    assert at_once(server, [(request, i % 4 != 0) for i in range(64)], in_flight=64) == [expected] * 64


def test_half_of_the_clients_leave(server, client):
    """16 streams, 8 closed after two chunks: the others' texts are whole, and the rows of those gone are free."""
    request = {"model": NAME, "prompt": STORY, "temperature": 0, "max_tokens": 40}
    expected = ask(client, request)
    long = {**request, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}

    async def leave(asking):
        stream = await asking.completions.create(**long, stream=True)
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 2:
                break
        await stream.close()

    async def stay(asking):
        chunks = await asking.completions.create(**request, stream=True)
        return "".join([c.choices[0].text async for c in chunks])

    async def all_of_them():
        async with async_client(server) as asking:
            return await asyncio.gather(*(stay(asking) if i % 2 else leave(asking) for i in range(16)))

    assert [text for text in asyncio.run(all_of_them()) if text] == [expected] * 8
    assert server.wait_idle(10)


def test_a_whole_answer_nobody_waits_for_is_cancelled(server):
    body = {"model": NAME, "prompt": STORY, "max_tokens": 4000, "temperature": 0, "ignore_eos": True, "n": 4}

    async def cancelled():
        async with async_client(server) as client:
            extra = {"ignore_eos": True}
            call = client.completions.create(**{k: v for k, v in body.items() if k != "ignore_eos"}, extra_body=extra)
            task = asyncio.create_task(call)
            while server.running() == 0:
                await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert server.wait_idle(10)


def test_first_token_of_a_stream_beside_a_long_prompt(server, client):
    """Prefill in chunks: a long prompt may slow a running stream down, not stop it."""
    long = {"model": NAME, "prompt": "some words to read " * 300, "max_tokens": 1, "temperature": 0}
    pauses = []

    async def both():
        async with async_client(server) as asking:
            stream = await asking.completions.create(
                model=NAME, prompt=STORY, temperature=0, max_tokens=80, stream=True, extra_body={"ignore_eos": True}
            )
            reading = None
            last = time.monotonic()
            async for _ in stream:
                now = time.monotonic()
                pauses.append(now - last)
                last = now
                if len(pauses) == 10:
                    reading = asyncio.create_task(asking.completions.create(**long))
            await reading

    asyncio.run(both())
    assert max(pauses[1:]) < 3  # 1,500 tokens read in one piece take longer than that here
