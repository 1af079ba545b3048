"""The recorded prompts, and ways to ask for them: one by one, many at once, streamed or not."""
import asyncio
import json
import random
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import openai

from serving import NAME

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "smollm2.json"
CAPITAL = "What is the capital of France?"
STORY = "Once upon a time, in a village by the river,"


@cache
def golden():
    return json.loads(GOLDEN.read_text())["prompts"]


def recorded(name):
    return next(entry for entry in golden() if entry["name"] == name)


def said(entry, dtype="float32"):
    return "".join(entry[dtype]["pieces"])


def greedy(entry, max_tokens=64):
    """The request for a recorded prompt: chat where it was recorded as one, else completion."""
    where = {"messages": entry["chat"]} if "chat" in entry else {"prompt": entry["text"]}
    extra = {"ignore_eos": True}
    return {"model": NAME, "temperature": 0, "max_tokens": max_tokens, "extra_body": extra, **where}


def endpoint(client, request):
    return client.chat.completions if "messages" in request else client.completions


def text_of(choice):
    if hasattr(choice, "delta"):
        return choice.delta.content or ""
    return choice.message.content if hasattr(choice, "message") else choice.text


def ask(client, request):
    """The text of the first choice."""
    return text_of(endpoint(client, request).create(**request).choices[0])


def complete(client, prompt, **options):
    """A greedy completion unless told otherwise: the whole response. Fields OpenAI lacks go through extra_body."""
    own = {k: options.pop(k) for k in list(options) if k in OWN_FIELDS}
    request = {"model": NAME, "prompt": prompt, "temperature": 0, "max_tokens": 16, **options}
    return client.completions.create(**request, extra_body=own)


OWN_FIELDS = {
    "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "add_special_tokens"
}


async def ask_async(client, request, stream=False):
    if not stream:
        response = await endpoint(client, request).create(**request)
        return text_of(response.choices[0])
    parts = []
    async for chunk in await endpoint(client, request).create(**request, stream=True):
        parts += [text_of(choice) for choice in chunk.choices if choice.index == 0]
    return "".join(parts)


@asynccontextmanager
async def async_client(server):
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=180)
    async with client:
        yield client


def at_once(server, jobs, in_flight=32):
    """Asks all the (request, stream) jobs with at most `in_flight` under way; their texts, in order."""

    async def all_of_them():
        gate = asyncio.Semaphore(in_flight)
        async with async_client(server) as client:

            async def one(request, stream):
                async with gate:
                    return await ask_async(client, request, stream)

            return await asyncio.gather(*(one(*job) for job in jobs))

    return asyncio.run(all_of_them())


def neighbours(count, seed):
    """Requests of every kind to fill a batch with: sampled, penalized, biased, several choices, odd lengths."""
    rng = random.Random(seed)
    words = "river stone lamp tiger seven of under blue and quickly it 42".split()
    made = []
    for i in range(count):
        made.append({
            "model": NAME,
            "prompt": " ".join(rng.choices(words, k=rng.randint(1, 60))),
            "max_tokens": rng.randint(1, 48),
            "temperature": rng.choice([0, 0.5, 1.0, 1.7]),
            "top_p": rng.choice([1, 0.9, 0.3]),
            "n": rng.choice([1, 1, 2]),
            "seed": i,
            "presence_penalty": rng.choice([0, 1.5]),
            "logprobs": rng.choice([None, 3]),
            "logit_bias": rng.choice([{}, {"100": 5, "200": -100}]),
            "extra_body": {
                "top_k": rng.choice([0, 5, 100]),
                "min_p": rng.choice([0, 0.1]),
                "repetition_penalty": rng.choice([1, 1.3]),
            },
        })
    return made
