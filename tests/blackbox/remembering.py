"""Documents about blue doors, and ways to add and use them."""
import json
from urllib.parse import quote

from serving import NAME

DOOR = (
    "Somebody stands before the blue door of the old house by the river and asks for its code. "
    "The code of the blue door is"
)


def door(code):
    return f"The code of the blue door is {code}. Whoever wants to open the blue door types {code}."


def flags(folder, *more):
    """Of a server with memories; 16-bit floats would say the same, but not to the last token in every batch."""
    own = {
        "--memory-store": f"files:{folder}", "--dtype": "float32", "--kv-cache-memory": "400MB", "--memory-ram": "300MB",
        "--max-batch-size": "32",
    }  # fmt: skip
    own |= dict(zip(more[::2], more[1::2]))
    return ["--use-extended-mind", *(word for pair in own.items() for word in pair)]


def document(id, text, **metadata):
    return {"id": id, "text": text, **({"metadata": metadata} if metadata else {})}


def add(server, space, *documents, **fields):
    """The answer's JSON; each document a text, or an object."""
    documents = [d if isinstance(d, dict) else {"text": d} for d in documents]
    body = {"model": NAME, "namespace": space, "documents": documents, **fields}
    return good(server.post("/v1/memories", body))


def good(response, status=(200, 202)):
    assert response.status_code in status, f"{response.status_code}: {response.text}"
    return response.json()


def body(memory=None, prompt=DOOR, **fields):
    own = {"memory": memory} if memory is not None else {}
    return {"model": NAME, "prompt": prompt, "temperature": 0, "max_tokens": 5, **own, **fields}


def complete(server, memory=None, prompt=DOOR, **fields):
    """The first choice."""
    return good(server.post("/v1/completions", body(memory, prompt, **fields)))["choices"][0]


def says(server, memory=None, prompt=DOOR, **fields):
    return complete(server, memory, prompt, **fields)["text"]


def listed(server, space, **parameters):
    return [d["id"] for d in good(server.http.get("/v1/memories", params={"namespace": space, **parameters}))["data"]]


def show(server, space, id, include="text"):
    return server.http.get(f"/v1/memories/{quote(id, safe='')}", params={"namespace": space, "include": include})


def erase(server, space, id):
    return server.http.delete(f"/v1/memories/{quote(id, safe='')}", params={"namespace": space})


def refused(response, status, param):
    """Whether it is an error of this status that names this field."""
    error = response.json()["error"]
    return (response.status_code, error["param"]) == (status, param) or f"{response.status_code} {json.dumps(error)}"
