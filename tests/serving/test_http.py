"""The server over real sockets, with the shipped model: what it answers, and what it refuses."""

import base64
import contextlib
import io
import json
import socket
import time

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving.servers import NAME, chat, noise, png, served, until, url_of
from zoomearth_jax.configs.serving import ServerLimits
from zoomearth_jax.serving.agent import _Playing
from zoomearth_jax.tools.registry import find_tools

CHAT = "/v1/chat/completions"
LIMITS = ServerLimits(body_mb=2, body_pixels=2_000_000, images=3, choices=3, files=3, upload_mb=8, tokens=64)


@pytest.fixture(scope="module")
def running(policy):
    with served(policy, rows=3, limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def asked(policy, scene, question):
    """What `ask` says."""
    return policy.ask(scene, question.text, temperature=0)


def events(response) -> list[dict]:
    """The chunks of a stream."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def sent(body: str) -> bytes:
    """A request as it is on the wire."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def kept(client, file: bytes, name: str = "a.png") -> str:
    """The handle of an upload, once it is ready."""
    answer = client.post("/v1/files", files={"file": (name, file)}, data={"purpose": "vision"})
    assert answer.status_code == 200, answer.text
    file_id = answer.json()["id"]
    until(lambda: client.get(f"/v1/images/{file_id}").json()["ready"])
    return file_id


@contextlib.contextmanager
def uploaded(client, file: bytes, name: str = "a.png"):
    file_id = kept(client, file, name)
    yield file_id
    assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}


def check_agent(message: dict, asked) -> None:
    """Asserts that an episode is `ask`'s."""
    trace = message["trace"]
    assert message["content"] == asked.answer == trace["answer"]
    assert [turn["text"] for turn in trace["turns"]] == [turn.text for turn in asked.turns]
    assert trace["box"] == [round(c, 1) for c in asked.box.corners]
    assert trace["turns"][0]["box"] == [round(c, 1) for c in asked.turns[0].box.corners]
    assert trace["turns"][0]["window"] == list(asked.turns[0].window.corners)
    shown = base64.b64decode(trace["turns"][0]["picture"].partition(",")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown))), asked.turns[0].picture)
    assert trace["turns"][1]["picture"] is None
    assert trace["image"] == {"width": 1024, "height": 1024}


def test_agent_answers_as_ask_does_for_images_in_bodies_and_uploads(client, policy, scene, question, asked):
    assert asked.turns[0].picture is not None  # so that there is something to compare
    with uploaded(client, scene.read_bytes()) as file_id:
        for place in (url_of(scene.read_bytes()), file_id):
            answer = client.post(CHAT, json=chat(question.text, place, agent=True)).json()
            check_agent(answer["choices"][0]["message"], asked)
        part = {"type": "file", "file": {"file_id": file_id}}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": question.text}]}]
        answer = client.post(CHAT, json={"model": f"{NAME}-agent", "messages": messages, "temperature": 0}).json()
        check_agent(answer["choices"][0]["message"], asked)
    written = sum(len(policy.rows.chat.encode(turn.text)) + 1 for turn in asked.turns)  # with the stop tokens
    assert answer["usage"]["completion_tokens"] == written
    assert answer["usage"]["total_tokens"] == written + answer["usage"]["prompt_tokens"]


def test_agent_streams_its_turns_in_order(client, scene, question, asked):
    body = chat(question.text, url_of(scene.read_bytes()), agent=True, stream=True)
    response = client.post(CHAT, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    deltas = [chunk["choices"][0]["delta"] for chunk in events(response)]
    traces = [delta["trace"] for delta in deltas if "trace" in delta]
    order = [(trace["event"], trace.get("turn")) for trace in traces]
    assert order == [("turn", 1), ("look", 1), ("picture", 1), ("turn", 2), ("answer", None)]
    assert "".join(delta.get("content", "") for delta in deltas) == "".join(turn.text for turn in asked.turns)
    assert traces[-1]["answer"] == asked.answer
    assert events(response)[-1]["choices"][0]["finish_reason"] == "stop"


def test_agent_takes_a_box(client, scene, question, running):
    site = question.box
    box = [c / 2 for c in site.corners]  # the scene is 2,048 px, its file 1,024
    body = chat(question.text, url_of(scene.read_bytes()), agent=True, box=box)
    trace = client.post(CHAT, json=body).json()["choices"][0]["message"]["trace"]
    left, top, right, bottom = trace["turns"][0]["window"]
    px = 1024 / 112  # the box is told in whole px of the overview
    assert left <= box[0] + px
    assert top <= box[1] + px
    assert right >= box[2] - px
    assert bottom >= box[3] - px
    assert trace["answer"] == question.answer
    assert client.post(CHAT, json=body | {"box": [2000, 2000, 2100, 2100]}).status_code == 400


def test_a_chat_is_the_same_whole_and_streamed(client):
    body = chat("How many sites are there?", url_of(png(noise(112, 112))), max_tokens=12, temperature=1, seed=4, n=2)
    whole = client.post(CHAT, json=body).json()
    assert whole["object"] == "chat.completion"
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts[0] != texts[1]  # drawn independently
    streamed = client.post(CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}})
    chunks = events(streamed)
    told = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            told[choice["index"]] += choice["delta"].get("content") or ""
    assert told == texts
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []
    again = client.post(CHAT, json=body | {"seed": 5}).json()
    assert [choice["message"]["content"] for choice in again["choices"]] != texts


def test_usage_counts_the_prompt_once(client, policy):
    answer = client.post(CHAT, json=chat("Which season is it?", n=2, max_tokens=3, temperature=1)).json()
    prompt = policy.rows.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Which season is it?"}], add_generation_prompt=True, return_dict=False
    )
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] <= 6


def test_stops_and_lengths(client):
    body = chat("Which season is it?", url_of(png(noise(112, 112))), temperature=2)
    for seed in range(30):  # until one writes some text
        body["seed"] = seed
        whole = client.post(CHAT, json=body | {"max_tokens": 40}).json()["choices"][0]["message"]["content"]
        if len(whole) > 8 and "\ufffd" not in whole:
            break
    assert len(whole) > 8
    cut = client.post(CHAT, json=body | {"max_tokens": 40, "stop": [whole[2:4]]}).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(whole[2:4])]
    assert cut["finish_reason"] == "stop"
    short = client.post(CHAT, json=body | {"max_tokens": 1}).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 1
    endless = client.post(CHAT, json=body | {"max_completion_tokens": 10**9})  # more than there is room for
    assert endless.status_code == 200


def test_images_are_taken_in_every_role(client):
    image = {"type": "image_url", "image_url": {"url": url_of(png(noise(56, 84))), "detail": "high"}}
    text = {"type": "text", "text": "look"}
    messages = [{"role": role, "content": [image, text]} for role in ("system", "user", "assistant")]
    answer = client.post(CHAT, json=chat(max_tokens=2) | {"messages": messages})
    assert answer.status_code == 200, answer.text
    bare = [{"role": role, "content": [text]} for role in ("system", "user", "assistant")]
    without = client.post(CHAT, json=chat(max_tokens=2) | {"messages": bare})
    extra = answer.json()["usage"]["prompt_tokens"] - without.json()["usage"]["prompt_tokens"]
    assert extra == 3 * (2 * 3 + 2)  # 2 x 3 visual tokens of 28 px between two marks


HUGE = url_of(png(np.zeros((1, 4, 3), np.uint8)))
REFUSED = [
    ({"model": "other"}, 404, "model", "model_not_found"),
    ({"messages": []}, 400, "messages", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 400, "messages[0].content[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "invalid_value"),
    ({"temperature": "1"}, 400, "temperature", "invalid_value"),
    ({"temperature": True}, 400, "temperature", "invalid_value"),
    ({"temperature": 3}, 400, "temperature", "invalid_value"),
    ({"n": 4}, 400, "n", "invalid_value"),
    ({"n": 1.0}, 400, "n", "invalid_value"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"stop": [""]}, 400, "stop", "invalid_value"),
    ({"stop": ["x"] * 17}, 400, "stop", "invalid_value"),
    ({"stream_options": {}}, 400, "stream_options", "invalid_value"),
    ({"logprobs": True}, 400, "logprobs", "invalid_value"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "invalid_value"),
    ({"temprature": 1}, 400, "temprature", "invalid_value"),
    ({"box": [0, 0, 1, 1]}, 400, "box", "invalid_value"),
    ({"agent": True}, 400, "messages", "invalid_value"),  # without an image
    ({"agent": True, "tools_offered": ["rm"]}, 400, "tools_offered", None),
    ({"chat_template_kwargs": {"tokenize": 1}}, 400, None, "invalid_value"),
    ({"chat_template_kwargs": {"mode": "<|im_start|>"}}, 400, None, "invalid_value"),
    ({"chat_template_kwargs": {"mode": []}}, 400, "chat_template_kwargs.mode", "invalid_value"),
    (chat("x", "http://localhost/a.png"), 400, "messages[0].content[0]", "invalid_image_url"),
    (chat("x", "/etc/passwd"), 400, "messages[0].content[0]", "invalid_image_url"),
    (chat("x", "file:/etc/passwd"), 400, "messages[0].content[0]", "invalid_image_url"),
    (chat("x", "file-nothing"), 404, "messages[0].content[0]", "file_not_found"),
    (chat("x", "data:image/png;base64,!!!!"), 400, "messages[0].content[0]", "invalid_image"),
    (chat("x", "data:image/png,abc"), 400, "messages[0].content[0]", "invalid_image"),
    (chat("x", url_of(b"GIF89a nothing")), 400, "messages[0].content[0]", "invalid_image"),
    (chat("x", url_of(png(noise(60, 60))[:200])), 400, "messages[0].content[0]", "invalid_image"),
    (chat("x", *[url_of(png(noise(56, 56)))] * 4), 400, "messages", None),
    (chat("x", url_of(png(np.zeros((1500, 1500, 3), np.uint8)))), 400, "messages[0].content[0]", "invalid_image"),
    (chat("x", url_of(png(np.zeros((1, 300, 3), np.uint8)))), 400, None, "invalid_value"),  # over 200 : 1
    (chat("many words " * 2000), 400, None, "invalid_value"),
]


@pytest.mark.parametrize(("changes", "status", "param", "code"), REFUSED)
def test_bad_requests_are_refused_in_openais_form(client, changes, status, param, code):
    answer = client.post(CHAT, json=chat() | changes)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"].endswith("_error")
    assert "\n" not in error["message"]
    assert "/tmp" not in error["message"]  # nothing of the inside


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"model": NaN}', {}, 400),
        (b'{"model": "\\ud800"}', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b" " * 2_000_001, {}, 413),
    ],
)
def test_bodies_that_are_no_json_object_are_refused(client, body, headers, status):
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"} | headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off_at_the_limit(running):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as line:
        line.sendall(head.encode())
        with contextlib.suppress(OSError):
            for _ in range(80):  # 5 MB, and the server must not wait for them
                line.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413")
    assert running.service.memory.taken == 0


def test_uploads_in_parts_are_put_together_in_the_order_given(client):
    pixels = noise(300, 500)
    file = png(pixels)
    new = {"filename": "x.png", "bytes": len(file), "mime_type": "image/png", "purpose": "vision"}
    upload = client.post("/v1/uploads", json=new).json()
    place = f"/v1/uploads/{upload['id']}"
    last = client.post(f"{place}/parts", files={"data": file[1000:]}).json()["id"]
    first = client.post(f"{place}/parts", files={"data": file[:1000]}).json()["id"]
    assert client.post(f"{place}/parts", files={"data": b"more"}).status_code == 400
    assert client.post(f"{place}/complete", json={"part_ids": [first]}).status_code == 400
    assert client.post(f"{place}/complete", json={"part_ids": [first, "part_x"]}).status_code == 400
    done = client.post(f"{place}/complete", json={"part_ids": [first, last]}).json()
    assert done["status"] == "completed"
    file_id = done["file"]["id"]
    until(lambda: client.get(f"/v1/images/{file_id}").json()["ready"])
    window = client.get(f"/v1/images/{file_id}/window", params={"box": "100,50,140,70", "width": 40, "height": 20})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(window.content))), pixels[50:70, 100:140])
    assert client.delete(f"/v1/files/{file_id}").status_code == 200
    assert client.get(f"/v1/files/{file_id}").status_code == 404
    other = client.post("/v1/uploads", json=new).json()["id"]
    assert client.post(f"/v1/uploads/{other}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/uploads/{other}/parts", files={"data": b"x"}).status_code == 400


def test_tiles_cover_the_image_at_every_level(client):
    pixels = np.full((520, 700, 3), (200, 80, 30), np.uint8)
    with uploaded(client, png(pixels)) as file_id:
        place = f"/v1/images/{file_id}"
        about = client.get(place).json()
        assert (about["width"], about["height"], about["tile_px"], about["levels"]) == (700, 520, 256, 3)
        for level, (width, height) in enumerate(((700, 520), (350, 260), (175, 130))):
            covered = 0
            for column in range(-(-width // 256)):
                for row in range(-(-height // 256)):
                    tile = Image.open(io.BytesIO(client.get(f"{place}/tiles/{level}/{column}_{row}").content))
                    assert np.abs(np.asarray(tile).astype(int) - pixels[0, 0]).max() <= 3
                    covered += tile.width * tile.height
            assert covered == width * height
        for outside in ("3/0_0", "0/3_0", "0/0_3", f"{10**30}/0_0"):
            assert client.get(f"{place}/tiles/{outside}").status_code == 404
        for wrong in ("box=1,2,3", "box=a,b,c,d", "box=900,0,950,9", "box=nan,0,9,9", "box=5,5,5,5"):
            assert client.get(f"{place}/window?{wrong}&width=10&height=10").status_code == 400
        for side in ("0", "5000", "1.5", "x"):
            assert client.get(f"{place}/window?box=0,0,9,9&width={side}&height=10").status_code == 400


VRT = (
    b"<VRTDataset rasterXSize='9' rasterYSize='9'><VRTRasterBand dataType='Byte' band='1'></VRTRasterBand></VRTDataset>"
)


@pytest.mark.parametrize("file", [b"", b"not an image", VRT, b"EHFA_HEADER_TAG" + bytes(99), png(noise(9, 9))[:40]])
def test_files_that_are_no_image_of_their_own_are_refused(client, running, file):
    before = running.service.uploads.counts()
    answer = client.post("/v1/files", files={"file": ("x.png", file)}, data={"purpose": "vision"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image"
    assert running.service.uploads.counts() == before
    assert client.post(CHAT, json=chat("x", url_of(file))).status_code == 400


def test_a_file_that_breaks_off_is_said_to_be_broken_when_it_is_asked_about(client):
    cut = png(noise(400, 400))[:-100_000]
    answer = client.post("/v1/files", files={"file": ("x.png", cut)}, data={"purpose": "vision"})
    file_id = answer.json()["id"]
    until(lambda: client.get(f"/v1/files/{file_id}").json()["status"] == "error")
    for _ in range(2):
        asked = client.post(CHAT, json=chat("x", file_id, agent=True))
        assert asked.status_code == 400
        assert "broken" in asked.json()["error"]["message"]
    assert client.get(f"/v1/images/{file_id}/tiles/0/0_0").status_code == 400
    assert client.delete(f"/v1/files/{file_id}").status_code == 200


def test_forms_are_checked(client):
    assert client.post("/v1/files", data={"purpose": "vision"}).status_code == 415
    image = {"file": ("x.png", png(noise(9, 9)))}
    assert client.post("/v1/files", files=image, data={"purpose": "fine-tune"}).status_code == 400
    assert client.post("/v1/files", files={"other": b"x"}, data={"purpose": "vision"}).status_code == 400
    large = client.post("/v1/files", files={"file": ("x.png", bytes(9_000_000))}, data={"purpose": "vision"})
    assert large.status_code == 413
    new = {"filename": "x", "bytes": 9_000_000, "mime_type": "image/png", "purpose": "vision"}
    assert client.post("/v1/uploads", json=new).status_code == 413
    assert client.delete("/v1/files/file-example0").status_code == 403


def test_files_are_bounded_and_expire(client, running):
    ids = [kept(client, png(noise(60, 60, seed))) for seed in range(LIMITS.files)]
    full = client.post("/v1/files", files={"file": ("x.png", png(noise(60, 60)))}, data={"purpose": "vision"})
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) > 0
    running.service.uploads.get(ids[0]).used -= 2 * LIMITS.file_seconds
    running.service.uploads.sweep()
    assert client.get(f"/v1/files/{ids[0]}").status_code == 404
    assert client.get(f"/v1/files/{ids[1]}").status_code == 200
    for file_id in ids[1:]:
        client.delete(f"/v1/files/{file_id}")
    assert running.service.uploads.counts() == (0, 0)
    assert not list(running.service.uploads.folder.iterdir())


def test_a_deleted_file_stays_for_those_who_look_at_it(client, running):
    file_id = kept(client, png(noise(60, 60)))
    with running.service.uploads.using(file_id) as stored:
        client.delete(f"/v1/files/{file_id}")
        assert client.get(f"/v1/files/{file_id}").status_code == 404
        assert stored.original.is_file()
    assert not stored.original.exists()


def test_metrics_count(client, running):
    def figures() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = figures()
    answer = client.post(CHAT, json=chat(max_tokens=3)).json()
    client.get("/nothing")
    after = figures()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more("zoomearth_tokens_written_total") >= answer["usage"]["completion_tokens"]
    assert more("zoomearth_tokens_read_total") == answer["usage"]["prompt_tokens"]
    assert more('zoomearth_requests_total{route="create_chat_completion",status="200"}') == 1
    assert more('zoomearth_requests_total{route="none",status="404"}') == 1
    assert after["zoomearth_rows"] == 3
    assert after["zoomearth_rows_busy"] == after["zoomearth_queue_length"] == after["zoomearth_memory_bytes"] == 0


def test_the_schema_names_every_route(client, running):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    said = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    routes = running.server.config.app.routes
    there = {
        (route.path.replace(":int", "").replace(":path", ""), method)
        for route in routes
        for method in getattr(route, "methods", ())
        if method != "HEAD"
    }
    assert there - said == {("/", "GET"), ("/openapi.json", "GET")}
    assert {one for one in said if one[1] != "PARAMETERS"} <= there
    assert client.get("/nothing").status_code == 404
    assert client.post("/health").status_code == 405
    assert client.get("/v1/models").json()["data"][1]["id"] == f"{NAME}-agent"
    assert client.get(f"/v1/models/{NAME}").json()["id"] == NAME
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_a_client_that_goes_away_frees_its_row(running):
    generator = running.service.generator
    for stream in (True, False):
        for agent in (True, False):
            body = json.dumps(
                chat("x", "file-example0", stream=stream, agent=agent, max_tokens=64) if agent else chat(stream=stream)
            )
            with running.slowed(0.3):
                with socket.create_connection(("127.0.0.1", running.port)) as line:
                    line.sendall(sent(body))
                    until(lambda: generator.stats.busy == 1)
                    before = generator.stats.outcomes.get("cancelled", 0)
                until(lambda: generator.stats.busy == 0)
            assert generator.stats.outcomes["cancelled"] == before + 1
    until(lambda: running.service.memory.taken == 0 and running.service.active == 0)


def test_requests_over_the_queue_are_told_when_to_come_again(policy):
    with (
        served(policy, rows=1, queue=1) as running,
        running.slowed(0.3),
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):
        lines = []
        body = json.dumps(chat(stream=True))
        for busy, waiting in ((1, 0), (1, 1)):
            lines.append(socket.create_connection(("127.0.0.1", running.port)))
            lines[-1].sendall(sent(body))
            until(lambda b=busy, w=waiting: running.service.generator.stats[1:3] == (b, w))
        for one in (chat(), chat(stream=True), chat("x", "file-example0", agent=True)):
            answer = client.post(CHAT, json=one)
            assert answer.status_code == 429, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
        for line in lines:
            line.close()


def test_time_runs_out(policy):
    limits = ServerLimits(seconds=0.4, body_seconds=0.2)
    with served(policy, limits=limits) as running, httpx.Client(base_url=running.url, timeout=300) as client:
        with running.slowed(0.6):
            assert client.post(CHAT, json=chat()).status_code == 504
            streamed = client.post(CHAT, json=chat(stream=True, n=2, temperature=1))
            assert streamed.status_code == 504
        with socket.create_connection(("127.0.0.1", running.port)) as line:
            line.sendall(sent("x" * 99)[:-99])
            assert line.recv(100).startswith(b"HTTP/1.1 408")
        until(lambda: running.service.generator.stats.busy == 0)


def test_memory_is_bounded(policy):
    limits = ServerLimits(memory_mb=3)
    with served(policy, limits=limits) as running, httpx.Client(base_url=running.url, timeout=300) as client:
        assert client.post(CHAT, json=chat(max_tokens=1)).status_code == 200
        large = client.post(CHAT, json=chat("x", url_of(png(np.zeros((1000, 1000, 3), np.uint8)))))
        assert large.status_code == 429
        assert large.json()["error"]["code"] == "server_full"
        until(lambda: running.service.memory.taken == 0)


def test_a_key_is_asked_for_and_other_sites_are_kept_out(policy):
    with (
        served(policy, api_key="s3cret", hosts=("127.0.0.1",)) as running,
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "s3cret"}):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.post(CHAT, json=chat()).status_code == 401
        assert client.get("/metrics").status_code == 401
        key = {"Authorization": "Bearer s3cret"}
        assert client.get("/v1/models", headers=key).status_code == 200
        for path in ("/health", "/", "/page/main.js", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/v1/models", headers=key | {"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/v1/models", headers=key | {"Origin": running.url}).status_code == 200
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_tools_that_are_offered_are_run_and_told(policy, scene, question, monkeypatch):
    pytest.importorskip("skimage", reason="the extra `tools` is not installed")
    call = {"name": "denoise", "arguments": {"bbox_2d": [10, 10, 60, 60]}}
    written = f"<tool_call>{json.dumps(call)}</tool_call>"
    monkeypatch.setattr(_Playing, "_naming", lambda self, box: written)  # the shipped model calls no tools by itself
    body = chat(question.text, url_of(scene.read_bytes()), agent=True, box=[0, 0, 99, 99], tools_offered=["denoise"])
    with (
        served(policy, slots=4096, tools=find_tools(["denoise"])) as running,
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):
        (about,) = client.get("/v1/tools").json()
        assert about["function"]["name"] == "denoise"
        trace = client.post(CHAT, json=body).json()["choices"][0]["message"]["trace"]
        (outcome,) = trace["turns"][0]["tools"]
        assert (outcome["tool"], outcome["error"]) == ("denoise", None)
        assert trace["turns"][0]["picture"].startswith("data:image/png")
        assert len(trace["turns"]) == 2
        plain = client.post(CHAT, json=body | {"tools_offered": None}).json()["choices"][0]["message"]["trace"]
        assert "tools" not in plain["turns"][0]  # which were not offered, so that the call is a text like others


def test_only_what_lies_under_the_root_is_read(policy, tmp_path, scene, question):
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    (root / "in").mkdir(parents=True)
    secret.write_bytes(png(noise(90, 90)))
    (root / "in" / "a b.png").write_bytes(scene.read_bytes())
    (root / "link.png").symlink_to(secret)
    (root / "out").symlink_to(tmp_path)
    (root / "text.png").write_text("no image")
    (root / "mosaic.vrt").write_bytes(VRT)
    with served(policy, root=root) as running, httpx.Client(base_url=running.url, timeout=300) as client:
        for name in ("in/a b.png", "in/a%20b.png", "./in/../in/a b.png"):
            answer = client.post(CHAT, json=chat(question.text, f"file:{name}", agent=True))
            assert answer.status_code == 200, answer.text
        outside = (
            "../secret.png",
            "%2e%2e/secret.png",
            "link.png",
            "out/secret.png",
            str(secret),
            "",
            ".",
            "in",
            "none.png",
        )
        broken = ("text.png", "mosaic.vrt", "a\0b", "x" * 5000)
        for name in (*outside, *broken):
            answer = client.post(CHAT, json=chat("x", f"file:{name}", agent=True))
            assert answer.status_code in (400, 404), (name, answer.text)
            assert str(tmp_path) not in answer.text


EPISODE = chat(
    "Which way do the stripes of the pink site run?", "file-example0", agent=True, stream=True
)  # of some visits


def test_a_server_that_is_to_stop_brings_its_answers_to_their_end(policy):
    with served(policy, drain=300) as running, httpx.Client(base_url=running.url, timeout=300) as client:
        with running.slowed(0.4), client.stream("POST", CHAT, json=EPISODE) as answer:
            chunks = answer.iter_text()
            next(chunks)
            running.server.handle_exit(15, None)
            with httpx.Client(base_url=running.url) as other:
                health = other.get("/health")
                assert (health.status_code, health.json()) == (503, {"status": "draining"})
                refused = other.post(CHAT, json=chat())
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
            assert "".join(chunks).endswith("data: [DONE]\n\n")
        running.thread.join(60)
        assert not running.thread.is_alive()


def test_what_takes_too_long_at_the_end_is_cut_off_and_told(policy):
    with served(policy, drain=0.3) as running, httpx.Client(base_url=running.url, timeout=300) as client:
        with running.slowed(0.6), client.stream("POST", CHAT, json=EPISODE) as answer:
            chunks = answer.iter_text()
            said = next(chunks)
            began = time.monotonic()
            running.server.handle_exit(15, None)
            said += "".join(chunks)
        assert '"error":' in said
        assert "[DONE]" not in said
        running.thread.join(60)
        assert time.monotonic() - began < 60
