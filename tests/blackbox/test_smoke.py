"""The first things anyone tries."""
from conftest import client_of

from asking import CAPITAL, STORY, complete, recorded
from serving import NAME, model


def test_capital_of_france(client):
    response = client.chat.completions.create(
        model=NAME, temperature=0, messages=[{"role": "user", "content": CAPITAL}]
    )
    choice = response.choices[0]
    assert choice.message.content == "The capital of France is Paris."
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert response.object == "chat.completion"
    assert response.usage.prompt_tokens == 37
    assert response.usage.total_tokens == 37 + response.usage.completion_tokens


def test_completion(client):
    response = complete(client, STORY, max_tokens=8)
    assert response.object == "text_completion"
    assert response.choices[0].text == "".join(recorded("story")["float32"]["pieces"][:8])
    assert response.choices[0].finish_reason == "length"
    assert response.usage.completion_tokens == 8


def test_models(client):
    listed = {card.id: card for card in client.models.list()}
    assert NAME in listed
    assert client.models.retrieve(NAME).id == NAME
    assert listed[NAME].object == "model" and listed[NAME].owned_by


def test_the_model_path_is_an_id_too(server):
    body = {"model": model(), "prompt": STORY, "max_tokens": 2, "temperature": 0}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model()


def test_health_and_metrics(server, client):
    assert server.http.get("/health").json()["status"] == "ok"
    before = server.metric("vllm:generation_tokens_total")
    complete(client, STORY, max_tokens=5)
    assert server.metric("vllm:generation_tokens_total") == before + 5
    debug = server.http.get("/debug/metrics").json()
    assert debug["decode_tokens_total"] >= 5 and len(debug["batch_fill_hist"]) == 10


def test_perplexity(server):
    answer = server.post("/v1/perplexity", {"model": NAME, "text": "The cat sat on the mat."}).json()
    odd = server.post("/v1/perplexity", {"model": NAME, "text": "mat the on sat. cat The"}).json()
    assert answer["token_count"] == 6  # seven tokens, the first predicted by nothing
    assert abs(answer["ppl"] - 2.718281828 ** answer["avg_nll"]) < 1e-3 * answer["ppl"]
    assert 1 < answer["ppl"] < odd["ppl"]


def test_an_openai_client_with_retries_and_options(server):
    with client_of(server).with_options(timeout=30, max_retries=2) as client:
        assert complete(client, STORY, max_tokens=1).choices[0].text == " there"
