"""MLX_PARALLM_TRACE: a time line that a viewer of Chrome's trace format can read."""
import json

from conftest import client_of

from asking import complete


def test_the_parts_of_each_step_are_there(start, tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    monkeypatch.setenv("MLX_PARALLM_TRACE", str(path))
    with start() as traced, client_of(traced) as client:
        complete(client, "Once upon a time", max_tokens=20, ignore_eos=True)
        steps = traced.metric("mlx_parallm_steps_total")
    text = path.read_text()
    assert text.startswith("[\n") and text.endswith(",\n")  # what the format allows of a file that is never done
    events = json.loads(text.rstrip(",\n") + "]")
    spans = [e for e in events if e["ph"] == "X"]
    launches = [e for e in spans if e["name"] == "launch"]
    assert [e["args"]["step"] for e in launches] == list(range(1, int(steps) + 1))
    # What is inside a launch is inside it in time, on its thread.
    for part in ("graph", "sampling", "start"):
        inner = [e for e in spans if e["name"] == part]
        assert len(inner) == steps
        for whole, one in zip(launches, inner):
            assert one["tid"] == whole["tid"]
            assert whole["ts"] <= one["ts"] and one["ts"] + one["dur"] <= whole["ts"] + whole["dur"] + 0.01
    names = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert "engine" in names
    kernels = [e for e in spans if e["name"] == "parallm_paged_attention"]
    assert len(kernels) == 30 * steps  # a layer and step
    assert {"plan", "collect", "wait", "commit", "publish", "text"} <= {e["name"] for e in spans}


def test_a_path_that_cannot_be_written_is_a_warning(start, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_PARALLM_TRACE", str(tmp_path / "missing" / "trace.json"))
    with start() as server:
        assert "can't be written" in server.log
