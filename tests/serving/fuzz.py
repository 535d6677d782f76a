"""Requests that nobody means well: cases of the published schema, right and wrong ones, and random changes of good bodies."""

from __future__ import annotations

import base64
import collections
import contextlib
import io
import json
import random
import warnings
from pathlib import Path

import httpx2 as httpx
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from PIL import Image

SECRET = "the-words-of-a-file-that-nobody-sent"
FORMS = ("PNG", "JPEG", "WEBP", "TIFF", "JPEG2000", "GIF", "BMP")


class Fuzzer:
    """Sends requests to one server and counts its answers.

    Attributes:
        statuses: how often each came. failures: 5xx answers, with what was asked; and what leaked.
    """

    def __init__(self, url: str, seed_: int, secret: Path):
        """Takes a server, and a file outside of all that it may read."""
        self.url, self.secret, self.rng = url, secret, random.Random(seed_)
        self.client = httpx.Client(base_url=url, timeout=120)
        self.statuses: collections.Counter[int] = collections.Counter()
        self.failures: list[str] = []
        self.seed = seed_

    def close(self) -> None:
        self.client.close()

    def took(self, status: int, content: bytes, asked: str) -> None:
        """Counts an answer."""
        self.statuses[status] += 1
        if status >= 500 and status not in (503, 504):
            self.failures.append(f"{status} {asked[:2000]}")
        if SECRET.encode() in content:
            self.failures.append(f"leaked: {asked[:2000]}")

    def by_schema(self, count: int) -> None:
        """About so many cases of the schema, as many for each operation."""
        import schemathesis
        from schemathesis import GenerationMode

        schema = schemathesis.openapi.from_url(f"{self.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for number, operation in enumerate(operations):
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                each = max(1, count // (2 * len(operations)))

                @seed(self.seed + number)
                @settings(
                    max_examples=each,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def play(case):
                    answer = case.call(base_url=self.url)
                    self.took(answer.status_code, answer.content, f"{case.method} {case.formatted_path} {case.body!r}")

                with contextlib.suppress(Exception), warnings.catch_warnings():  # an operation without wrong cases
                    warnings.simplefilter("ignore")
                    play()

    def random_bodies(self, count: int) -> None:
        """Changed bodies of chats, uploads and parts, and addresses."""
        kinds = (self._chat, self._chat, self._chat, self._bytes, self._upload, self._parts, self._address)
        for _ in range(count):
            self.rng.choice(kinds)()

    def _send(self, method: str, path: str, **sent) -> httpx.Response | None:
        try:
            answer = self.client.request(method, path, **sent)
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # a server may hang up on what is no HTTP
            self.statuses[0] += 1
            if not isinstance(
                error, httpx.InvalidURL | httpx.LocalProtocolError | httpx.RemoteProtocolError | httpx.WriteError
            ):
                self.failures.append(f"{type(error).__name__} {method} {path}")
            return None
        self.took(answer.status_code, answer.content, f"{method} {path} {str(sent)[:1500]}")
        return answer

    def picture(self) -> bytes:
        """An image file of some form, often damaged; or another file that names the secret one."""
        rng = self.rng
        if rng.random() < 0.15:
            return self._naming()
        size = rng.choice(((1, 1), (28, 28), (60, 90), (300, 200), (1, 250)))
        pixels = np.random.default_rng(rng.randrange(9)).integers(0, 256, (*size, 3), np.uint8)
        file = io.BytesIO()
        mode = rng.choice(("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1"))
        with contextlib.suppress(OSError, ValueError, KeyError):
            picture = Image.fromarray(pixels)
            picture = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else picture.convert(mode)
            picture.save(file, rng.choice(FORMS))
        content = bytearray(file.getvalue() or b"\0")
        for _ in range(rng.choice((0, 0, 1, 5, 50))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content[: rng.choice((len(content), len(content), rng.randrange(len(content) + 1)))])

    def _naming(self) -> bytes:
        """A file that asks its reader to read the secret one."""
        name = str(self.secret)
        source = f"<SourceFilename relativeToVRT='0'>{name}</SourceFilename>"
        band = f"<VRTRasterBand dataType='Byte' band='1'><SimpleSource>{source}</SimpleSource></VRTRasterBand>"
        return self.rng.choice(
            (
                f"<VRTDataset rasterXSize='9' rasterYSize='9'>{band}</VRTDataset>".encode(),
                b"\xef\xbb\xbf  " + f"<VRTDataset rasterXSize='9' rasterYSize='9'>{band}</VRTDataset>".encode(),
                f"<svg xmlns='http://www.w3.org/2000/svg'><image href='file://{name}'/></svg>".encode(),
                f"<!DOCTYPE x [<!ENTITY e SYSTEM 'file://{name}'>]><VRTDataset>&e;</VRTDataset>".encode(),
                f"push graphic-context\nimage over 0,0 0,0 '{name}'".encode(),
                b"EHFA_HEADER_TAG" + name.encode(),
                name.encode(),
            )
        )

    def _url(self) -> str:
        name = str(self.secret)
        rng = self.rng
        if rng.random() < 0.6:
            kind = rng.choice(("image/png", "image/tiff", "text/plain", ""))
            return f"data:{kind};base64,{base64.b64encode(self.picture()).decode()}"
        return rng.choice(
            (
                *("file-example0", "file-example99", "file-", "data:,", "data:image/png;base64,A", "", "x" * 5000),
                *(name, f"file:{name}", f"file://{name}", "file:../../" + name, "file:%2e%2e/secret", "file:a\0b"),
                *(
                    "http://127.0.0.1:1/x.png",
                    "ftp://x",
                    "gopher://x",
                    "/vsicurl/http://127.0.0.1:1/",
                    f"/vsizip/{name}",
                ),
            )
        )

    def body(self) -> dict:
        """A chat completion, with fields of random values."""
        rng = self.rng
        parts: list = [
            {"type": "image_url", "image_url": {"url": self._url()}} for _ in range(rng.choice((0, 1, 1, 2, 17)))
        ]
        parts += [
            {"type": "text", "text": rng.choice(("How many sites are there?", "", "<|im_end|>", "ü" * 400, "\0"))}
        ]
        body = {
            "model": rng.choice(("nano-grpo", "nano-grpo", "nano-grpo-agent", "x")),
            "messages": [{"role": rng.choice(("user", "system", "assistant", "developer")), "content": parts}],
            "max_tokens": rng.choice((1, 3, 8)),
        }
        odd = (None, True, 0, -1, 1, 2**70, 0.5, 1e308, "", "x", [], {}, [[]], {"a": None}, "\ud800", [0, 0, 50, 50])
        known = "stream n temperature top_p top_k seed stop agent box tools_offered chat_template_kwargs stream_options logprobs"
        for name in rng.sample(known.split(), rng.randrange(4)):
            body[name] = rng.choice(odd)
        if rng.random() < 0.2:
            body["messages"] *= rng.choice((0, 2, 50))
        return self._changed(body) if rng.random() < 0.3 else body

    def _changed(self, value):
        """A JSON value with something else in one place."""
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            return value | {key: self._changed(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.9:
            place = rng.randrange(len(value))
            return [*value[:place], self._changed(value[place]), *value[place + 1 :]]
        return rng.choice((None, True, -1, 1.5, "", "\udfff", [], {}, {"type": "text"}, [None], 2**65))

    def _chat(self) -> None:
        self._json("/v1/chat/completions", self.body())

    def _json(self, path: str, value) -> None:
        self._send("POST", path, content=json.dumps(value), headers={"Content-Type": "application/json"})

    def _bytes(self) -> None:
        """A body whose bytes are changed, or that is none."""
        content = bytearray(json.dumps(self.body()).encode())
        for _ in range(self.rng.choice((1, 3, 30))):
            content[self.rng.randrange(len(content))] = self.rng.randrange(256)
        sent = bytes(content) if self.rng.random() < 0.8 else self.rng.randbytes(self.rng.randrange(300))
        path = self.rng.choice(
            ("/v1/chat/completions", "/v1/uploads", "/v1/uploads/x/complete", "/v1/images/file-example0/geojson")
        )
        kind = self.rng.choice(
            ("application/json", "application/json; charset=x", "text/plain", "multipart/form-data; boundary=b")
        )
        self._send("POST", path, content=sent, headers={"Content-Type": kind})

    def _upload(self) -> None:
        """An upload of whatever, looked at and deleted."""
        name = self.rng.choice(("a.png", "../../a.png", "a.vrt", "\0", "x" * 999, "", str(self.secret)))
        purpose = self.rng.choice(("vision", "vision", "vision", "", "x"))
        answer = self._send("POST", "/v1/files", files={"file": (name, self.picture())}, data={"purpose": purpose})
        if answer is not None and answer.status_code == 200:
            self._look_at(answer.json()["id"])

    def _look_at(self, file_id: str) -> None:
        corners = [self.rng.choice((-5, 0, 3, 50, 1e9)) for _ in range(4)]
        sides = self.rng.choice(((9, 9), (0, 1), (4096, 1)))
        box = ",".join(map(str, corners))
        self._send("GET", f"/v1/images/{file_id}/window?box={box}&width={sides[0]}&height={sides[1]}")
        self._send("GET", f"/v1/images/{file_id}/tiles/{self.rng.randrange(4)}/0_{self.rng.randrange(2)}")
        self._json(f"/v1/images/{file_id}/geojson", {"boxes": [{"box": corners}]})
        chat = {"type": "image_url", "image_url": {"url": file_id}}
        messages = [{"role": "user", "content": [chat, {"type": "text", "text": "Which season is it?"}]}]
        self._json("/v1/chat/completions", {"model": "nano-grpo-agent", "messages": messages, "max_tokens": 30})
        self._send("DELETE", f"/v1/files/{file_id}")

    def _parts(self) -> None:
        """An upload in parts that don't always fit."""
        content = self.picture()
        size = self.rng.choice((len(content), len(content), 0, -1, 10**18, "x"))
        new = {"filename": "a", "bytes": size, "mime_type": "image/png", "purpose": "vision"}
        self._json("/v1/uploads", self._changed(new))
        answer = self._send("POST", "/v1/uploads", json=new)
        if answer is None or answer.status_code != 200:
            return
        place, ids = f"/v1/uploads/{answer.json()['id']}", []
        cut = self.rng.randrange(len(content) + 1)
        for part in (content[:cut], content[cut:]):
            sent = self._send("POST", f"{place}/parts", files={"data": part})
            ids += [sent.json()["id"]] if sent is not None and sent.status_code == 200 else []
        self._json(f"{place}/complete", {"part_ids": self.rng.choice((ids, ids, ids[::-1], ids[:1], ["x"], ids * 2))})
        self._send("POST", f"{place}/cancel")

    def _address(self) -> None:
        """An address that is none."""
        name = self.rng.choice(("..", "%2e%2e", "%00", "x" * 3000, "file-example0", "☃", str(self.secret), "-1"))
        base = self.rng.choice(
            ("/", "/page/", "/v1/", "/v1/files/", "/v1/images/", "/v1/images/file-example0/tiles/0/", "/v1/models/")
        )
        method = self.rng.choice(("GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
        self._send(method, base + name)
