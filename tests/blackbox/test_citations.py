"""Which passage an answer came from, as the real model's attention says it."""
import pytest

from conftest import client_of, running
from serving import NAME

# A fact, a question, and how its answer begins, which ends with what the fact's own end follows.
FACTS = [
    ("The capital of Veldoria is Marnath.", "What is the capital of Veldoria?", "The capital of Veldoria is"),
    ("The cook of the ship Orlanta is called Brix.", "Who is the cook of the ship Orlanta?",
     "The cook of the ship Orlanta is called"),
    ("The code of the blue door is 7392.", "What is the code of the blue door?", "The code of the blue door is"),
    ("Doctor Halvik opens the clinic at six in the morning.", "When does Doctor Halvik open the clinic?",
     "Doctor Halvik opens the clinic at"),
    ("The river Tesk is four hundred kilometres long.", "How long is the river Tesk?", "The river Tesk is"),
    ("Mira Solano was born in the village of Quorin.", "Where was Mira Solano born?",
     "Mira Solano was born in the village of"),
    ("The favourite food of Tobias Renn is beetroot soup.", "What is the favourite food of Tobias Renn?",
     "The favourite food of Tobias Renn is"),
    ("The company Zanfer makes steam engines.", "What does the company Zanfer make?", "The company Zanfer makes"),
    ("The museum of Pitsar is closed on Tuesdays.", "When is the museum of Pitsar closed?",
     "The museum of Pitsar is closed on"),
    ("The password of the archive is violet lantern.", "What is the password of the archive?",
     "The password of the archive is"),
    ("Captain Dru sailed to Lokmar in 1847.", "When did Captain Dru sail to Lokmar?", "Captain Dru sailed to Lokmar in"),
    ("The tallest tower of Genmol has 93 floors.", "How many floors has the tallest tower of Genmol?",
     "The tallest tower of Genmol has"),
]


@pytest.fixture(scope="module")
def minding(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    with running("--use-extended-mind", "--memory-store", f"files:{store}") as server:
        facts = [{"id": f"{i:02}", "text": text} for i, (text, _, _) in enumerate(FACTS)]
        add(server, namespace="facts", pack=True, documents=facts)
        add(server, namespace="one", documents=[{"id": "all", "text": " ".join(fact[0] for fact in FACTS)}])
        with client_of(server) as client:
            yield client


def add(server, **body):
    answer = server.http.post("/v1/memories", json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text


def ask(client, place, stream=False, **memory):
    _, question, begun = FACTS[place]
    prompt = f"Question: {question}\nAnswer: {begun}"
    answer = client.completions.create(
        model=NAME, prompt=prompt, max_tokens=8, temperature=0, stop=["."], stream=stream, extra_body={"memory": memory})
    return list(answer) if stream else answer.choices[0]


@pytest.mark.parametrize("space,mode", [("facts", "documents"), ("one", "tokens")])
def test_the_first_citation_is_the_source(minding, space, mode):
    right = 0
    for place, (fact, _, _) in enumerate(FACTS):
        memory = ask(minding, place, namespaces=[space], citations=mode).memory
        assert 0 < memory["mass"] < 1
        scores = [citation["score"] for citation in memory["citations"]]
        assert scores == sorted(scores, reverse=True) and scores[-1] > 0
        first = memory["citations"][0]
        if first["text"] == fact:
            right += 1
            whole = fact if space == "facts" else " ".join(one[0] for one in FACTS)
            assert whole[first["char_start"]:first["char_end"]] == fact
            assert first["document_id"] == (f"{place:02}" if space == "facts" else "all")
            assert first["answer_tokens"] and first["count"] > 0 and -1 <= first["similarity"] <= 1
    assert right >= 11, f"{right} of 12"


def test_a_stream_ends_with_them(minding):
    chunks = ask(minding, 0, stream=True, namespaces=["facts"], citations="documents")
    told = [chunk.choices[0].memory for chunk in chunks if getattr(chunk.choices[0], "memory", None)]
    assert told == [ask(minding, 0, namespaces=["facts"], citations="documents").memory]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_without_them_the_answer_is_the_same(minding):
    cited = ask(minding, 2, namespaces=["facts"], citations="tokens", max_citations=1)
    plain = ask(minding, 2, namespaces=["facts"])
    assert cited.text == plain.text
    assert len(cited.memory["citations"]) == 1
    assert "citations" not in plain.memory and "mass" not in plain.memory


def test_a_source_that_is_not_there_is_not_cited(minding):
    whole = ask(minding, 7, namespaces=["facts"], citations="documents")
    assert whole.memory["citations"][0]["document_id"] == "07"
    others = [f"{i:02}" for i in range(len(FACTS)) if i != 7]
    less = ask(minding, 7, namespaces=["facts"], ids=others, citations="documents")
    assert "07" not in [citation["document_id"] for citation in less.memory["citations"]]
    assert less.text != whole.text


def test_several_choices_have_their_own(minding):
    answer = minding.completions.create(
        model=NAME, prompt=[f"Question: {q}\nAnswer: {b}" for _, q, b in FACTS[:3]], n=2, max_tokens=4, temperature=0,
        extra_body={"memory": {"namespaces": ["facts"], "citations": "documents"}})
    first = [choice.memory["citations"][0]["document_id"] for choice in answer.choices]
    assert first == ["00", "00", "01", "01", "02", "02"]
