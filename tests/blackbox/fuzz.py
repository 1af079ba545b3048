"""A seeded generator of request bodies that are wrong in every way: types, ranges, nesting, encodings, cut JSON."""
import json
import random

from serving import NAME

FIELDS = (
    "model prompt messages max_tokens max_completion_tokens temperature top_p top_k min_p n stream stream_options stop"
    " seed logit_bias logprobs top_logprobs echo suffix best_of presence_penalty frequency_penalty repetition_penalty"
    " min_tokens ignore_eos stop_token_ids response_format tools tool_choice user metadata prompt_logprobs priority"
    " guided_regex structured_outputs return_token_ids cache_salt add_special_tokens chat_template_kwargs"
    " memory use_memories memories memory_namespace memory_topk memory_similarity_threshold"
).split()
MEMORY_FIELDS = (
    "namespaces namespace ids filter inline max_documents top_k position rank similarity_threshold layers citations"
    " block_tokens on_uncertainty entropy extra_k max_citations documents if_exists"
    " background pack header add_bos stride max_length input id text token_ids metadata model"
).split()
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/perplexity")
MEMORY_PATHS = ("/v1/memories", "/v1/memories/query", f"/v1/models/{NAME}/memories", "/v1/completions", "/v1/chat/completions")
STRINGS = ("", "x", "\0", "\ud800", "é" * 50, "👩‍👩‍👧", "<|im_start|>", "{{ 7 * 7 }}", "../../etc/passwd", "a" * 3000, "%s%n", "null")
NUMBERS = (
    0, -1, 1, 2, 1.5, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 49151,
    49152, 1e400,
)  # fmt: skip


def anything(rng, depth=0):
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(STRINGS)
    if kind == 2:
        return rng.choice((None, True, False))
    if kind == 3:
        return rng.uniform(-3, 3)
    if kind == 4:
        return "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(12)))
    if kind == 5:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 6:
        return {rng.choice(FIELDS + ["role", "content", "type", "text"]): anything(rng, depth + 1) for _ in range(rng.randrange(5))}
    return {rng.choice(STRINGS): anything(rng, depth + 1)}


def right(rng, path):
    """A body that would be answered, cheaply."""
    if path == "/v1/perplexity":
        return {"model": NAME, "text": "ab"}
    if path == "/v1/memories/query":
        return {"model": NAME, "namespace": "fuzz", "input": "ab", "top_k": 2}
    if path.endswith("/memories"):
        return {"model": NAME, "namespace": "fuzz", "documents": [{"id": rng.choice("abc"), "text": "ab", "metadata": {"a": 1}}]}
    body = {"model": NAME, "max_tokens": 1, "temperature": rng.choice((0, 1))}
    if path == "/v1/completions":
        return {**body, "prompt": rng.choice(("Hi", [1, 2], ["a", "b"]))}
    return {**body, "messages": [{"role": "user", "content": "Hi"}]}


def cheap(body):
    """Keeps what happens to be valid from being long: the test is about refusing, not about generating."""
    for field, most in (("max_tokens", 1), ("max_completion_tokens", 1), ("n", 2), ("best_of", 2)):
        value = body.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and most < value < 10**4:
            body[field] = most
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = 1
    for field in ("prompt", "messages", "text"):
        if isinstance(body.get(field), str) and len(body[field]) > 100:
            body[field] = body[field][:100]
    return body


def wrong_bytes(rng, data):
    """Damages the encoded body."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(4)
        at = rng.randrange(len(data) + 1)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 6))
        elif kind == 2:
            data[at:at] = rng.choice((b"{", b"[", b'"', b",", b"}", b"\\u", b"\xff\xfe", b"\xc0\x80", b"[" * 600))
        else:
            del data[at:at + rng.randrange(1, 5)]
    return bytes(data)


def wrong_memory(rng, made):
    """Damages what a body says of memories, at some depth."""
    documents = made.get("documents")
    if documents is None and "input" not in made:
        made.setdefault("memory", {"namespaces": ["fuzz"], "inline": [{"text": "ab"}]})
    places = [made, made.get("memory"), *(documents if isinstance(documents, list) else [])]
    rng.choice([place for place in places if isinstance(place, dict)])[rng.choice(MEMORY_FIELDS)] = anything(rng)


def body(rng, paths):
    """(path, bytes): a request that is probably malformed."""
    path = rng.choice(paths)
    kind = rng.randrange(10)
    if kind == 0:
        return path, rng.randbytes(rng.randrange(80))
    if kind == 1:
        return path, encode(anything(rng))
    made = right(rng, path)
    if kind == 2:
        return path, wrong_bytes(rng, encode(made))
    if kind == 3:
        made.pop(rng.choice(list(made)))
    for _ in range(rng.randrange(1, 4)):
        if paths is MEMORY_PATHS and rng.random() < 0.8:
            wrong_memory(rng, made)
        else:
            made[rng.choice(FIELDS)] = anything(rng)
    data = encode(cheap(made))
    return path, wrong_bytes(rng, data) if kind == 4 else data


def encode(value):
    """JSON as Python writes it: NaN-free, but with 1e400 as Infinity and lone surrogates escaped."""
    return json.dumps(value, ensure_ascii=True).encode()


def bodies(seed, count, paths=PATHS):
    rng = random.Random(seed)
    return [body(rng, paths) for _ in range(count)]


def targets(seed, count):
    """(method, target): paths and queries of memories, percent-encoded in every way."""
    rng = random.Random(seed)
    pieces = ("%00", "%ff", "%c3%a9", "%2F", "%2e%2e", "..", "/", "%", "%4", "a", "x" * 600, "jobs", "query", "namespaces", "+", "&", "=")
    names = ("namespace", "limit", "after", "filter", "include", "model", "x")
    values = ("", "1", "-1", "0", "1e9", "fuzz", NAME, "%7B%22a%22:1%7D", "%7B", "text,tokens", "text,", "null", "[]", *pieces)
    made = []
    for _ in range(count):
        path = rng.choice(("/v1/memories", f"/v1/models/{NAME}/memories"))
        path += "".join("/" * (i == 0) + rng.choice(pieces) for i in range(rng.randrange(4)))
        query = "&".join(f"{rng.choice(names)}={rng.choice(values)}" for _ in range(rng.randrange(4)))
        made.append((rng.choice(("GET", "GET", "DELETE", "POST")), f"{path}?{query}" if query else path))
    return made
