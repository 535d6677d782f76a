"""Programs that others wrote, as clients of the server."""

import base64
import gc
import io

import openai
import pytest
from PIL import Image

from tests.serving.servers import NAME, noise, png, served, until, url_of


@pytest.fixture(scope="module")
def running(policy):
    with served(policy, rows=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def messages(place: str, text: str) -> list:
    image = {"type": "image_url", "image_url": {"url": place}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def test_openais_client_uploads_and_asks(client, policy, scene, question):
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}-agent"]
    file = client.files.create(file=scene, purpose="vision")
    until(lambda: client.files.retrieve(file.id).status == "processed")
    asked = policy.ask(scene, question.text, temperature=0)
    sent = {"model": f"{NAME}-agent", "messages": messages(file.id, question.text), "temperature": 0}
    reply = client.chat.completions.create(**sent)
    message = reply.choices[0].message
    assert message.content == asked.answer
    assert message.trace["box"] == [round(c, 1) for c in asked.box.corners]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    stream = client.chat.completions.create(**sent, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == "".join(turn.text for turn in asked.turns)
    assert chunks[-1].usage == reply.usage
    assert client.files.delete(file.id).deleted


def test_openais_client_uploads_in_parts(client, scene):
    upload = client.uploads.upload_file_chunked(file=scene, mime_type="image/png", purpose="vision", part_size=20_000)
    assert upload.status == "completed"
    assert upload.file.bytes == scene.stat().st_size
    until(lambda: client.files.retrieve(upload.file.id).status == "processed")
    client.files.delete(upload.file.id)


def test_openais_client_knows_the_errors(client):
    image = messages(url_of(png(noise(56, 56))), "x")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=image)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=NAME, messages=image, n=100)
    assert wrong.value.param == "n"
    with pytest.raises(
        openai.UnsupportedMediaTypeError if hasattr(openai, "UnsupportedMediaTypeError") else openai.APIStatusError
    ):
        client.post("/chat/completions", body=None, cast_to=object, options={"headers": {"Content-Type": "text/plain"}})


def test_the_reference_clients_two_stages(client, scene, question):
    """The authors' client sends only model and messages: the question, then the assistant's message with the crop."""
    first = messages(url_of(scene.read_bytes()), question.text)
    thought = client.chat.completions.create(model=NAME, messages=first).choices[0].message.content
    crop = io.BytesIO()
    with Image.open(scene) as image:
        image.crop((100, 100, 400, 400)).save(crop, "PNG")
    picture = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(crop.getvalue()).decode()}"},
    }
    second = [*first, {"role": "assistant", "content": [{"type": "text", "text": thought}, picture]}]
    reply = client.chat.completions.create(model=NAME, messages=second)
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.prompt_tokens > 0


def test_an_inspect_ai_task(running, policy, scene, question, tmp_path):
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import inspect_ai
        from inspect_ai.dataset import MemoryDataset, Sample
        from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, get_model
        from inspect_ai.scorer import exact

        asked = [ContentImage(image=str(scene)), ContentText(text=question.text)]
        sample = Sample(input=[ChatMessageUser(content=asked)], target=question.answer)
        model = get_model(f"openai-api/zoomearth/{NAME}-agent", base_url=f"{running.url}/v1", api_key="none")
        task = inspect_ai.Task(dataset=MemoryDataset([sample]), scorer=exact())
        (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none", temperature=0.0)
    assert log.status == "success", log.error
    assert log.samples[0].output.completion == policy.ask(scene, question.text, temperature=0).answer
    assert log.results.scores[0].metrics["mean" if "mean" in log.results.scores[0].metrics else "accuracy"].value == 1.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its client open
def test_lmms_evals_async_openai_model(running, scene, question, policy, monkeypatch):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.chat.async_openai import AsyncOpenAIChat

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model = AsyncOpenAIChat(
        model_version=f"{NAME}-agent", base_url=f"{running.url}/v1", api_key="none", num_concurrent=2
    )
    content = [{"type": "image", "url": Image.open(scene)}, {"type": "text", "text": question.text}]
    model.task_dict = {"task": {"test": [{"content": content}]}}

    def to_messages(doc):
        return [{"role": "user", "content": doc["content"]}]

    arguments = ("", to_messages, {"temperature": 0, "max_new_tokens": 64}, 0, "task", "test")
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    request = Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)
    (reply,) = model.generate_until([request])
    text = getattr(reply, "text", reply)
    del model
    gc.collect()  # its connections end here, not within another test
    assert text == policy.ask(scene, question.text, temperature=0).answer
