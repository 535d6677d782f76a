"""The package from Python: a model is loaded once and asked about whatever shows an image; docs/python.md says the truth."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from PIL import Image

import zoomearth_jax as ze
from tests.processes import ROOT
from zoomearth_jax import cli
from zoomearth_jax.data_pipeline.images.sources import ArrayImage, RawImage, global_view
from zoomearth_jax.data_pipeline.questions.procedural import site_question
from zoomearth_jax.data_pipeline.questions.scenes import random_scene

SEASON = "Which season is it?"


@pytest.fixture(scope="module")
def policy():
    return ze.load("nano-grpo")


@pytest.fixture(scope="module")
def scene():
    return random_scene(np.random.default_rng(3), 1000)


@pytest.fixture(scope="module")
def file(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("asked") / "images" / "scene.png"
    path.parent.mkdir()
    scene.write(path)
    return path


@pytest.fixture(scope="module")
def question(scene):
    return site_question(scene, scene.sites[0])


def test_a_path_an_array_and_a_picture_are_one_image(policy, scene, file, question):
    answer = policy.ask(file, question.text)
    assert answer.answer == question.answer == "vertical"
    assert answer.note == ""
    picture = Image.open(file)
    pixels = np.asarray(picture)
    for image in (str(file), pixels, picture, picture.convert("RGBA"), ze.Image(file), ArrayImage(pixels)):
        same = policy.ask(image, question.text)
        assert same == answer
        np.testing.assert_array_equal(same.overview, answer.overview)
    first, last = answer.turns
    assert answer.box == first.box
    assert answer.box.frame == ze.Frame(1000, 1000)
    named = json.loads(re.search(r"\[\{.*\}\]", first.text)[0])[0]["bbox_2d"]  # in px of the overview, 112 x 112
    assert answer.box.corners == pytest.approx([1000 / 112 * corner for corner in named])
    exact = scene.box(scene.sites[0])
    assert exact.x1 < (answer.box.x1 + answer.box.x2) / 2 < exact.x2
    assert first.window.frame == answer.box.frame
    x1, y1, x2, y2 = first.window.corners
    assert (x1, y1) <= (answer.box.x1, answer.box.y1)
    assert (x2, y2) >= (answer.box.x2, answer.box.y2)
    np.testing.assert_allclose(first.picture.mean((0, 1)), pixels[y1:y2, x1:x2].mean((0, 1)), atol=2)
    assert (last.box, last.window, last.picture) == (None, None, None)


def test_images_of_tile_stores_are_paths_too(policy, file, question):
    store = file.parents[1] / "tiles"
    assert cli.main(["tile", str(file.parent), "--out", str(store)]) == 0
    for path in (store, store / "scene.png", str(store / "scene.png")):
        assert policy.ask(path, question.text) == policy.ask(file, question.text)


def test_an_answer_shows_itself(policy, file, question):
    answer = policy.ask(file, question.text)
    shown = Image.open(io.BytesIO(answer._repr_png_()))
    assert shown.format == "PNG"
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(answer.show()))
    magenta = (np.asarray(shown)[:, :448] == (255, 0, 200)).all(-1)  # the box, in the overview at 4 times its size
    rows, columns = np.where(magenta.any(1))[0], np.where(magenta.any(0))[0]
    corners = [columns[0], rows[0], columns[-1], rows[-1]]
    assert corners == pytest.approx([corner * 0.448 for corner in answer.box.corners], abs=3)
    assert shown.width > 448 + 100  # and the crop beside it


def test_lists_are_one_batch_in_order(policy, scene, file, question, monkeypatch):
    engine, calls, reads = policy._engine, [], []

    def counted(*args, **how):
        calls.append(len(args[1]))
        return engine(*args, **how)

    counted.readers, counted.send, counted.rows = engine.readers, engine.send, engine.rows
    monkeypatch.setattr(policy, "_engine", counted)
    read = RawImage.window
    monkeypatch.setattr(RawImage, "window", lambda *args: reads.append(args) or read(*args))
    two = policy.ask(file, [question.text, SEASON])
    assert (len(calls), calls[0]) == (1, 2)
    assert len(reads) == 1 + 1  # the overview is shared, and one of them has a crop
    assert [one.question for one in two] == [question.text, SEASON]
    assert [one.answer for one in two] == [question.answer, scene.season]
    assert policy.ask([np.asarray(Image.open(file)), str(file)], [question.text, SEASON]) == two
    grey = np.full((40, 60), 9, np.uint8)
    scenes = policy.ask([file, grey], SEASON)
    assert scenes[0] == two[1]
    assert [one.note != "" for one in scenes] == [False, True]
    assert policy.ask([ze.Question(ze.Image(file), text, "", "global") for text in (question.text, SEASON)]) == two
    assert calls == [2] * 4
    assert [one.answer for one in policy.ask([file], SEASON)] == [scene.season]


def test_temperature_and_seed(policy, file, question):
    drawn = [policy.ask(file, question.text, temperature=2.0, seed=seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({one.turns[0].text for one in drawn}) > 1
    with pytest.raises(ze.UserError, match="temperature must be 0 or"):
        policy.ask(file, question.text, temperature=-1)
    with pytest.raises(ze.UserError, match=r"seed: 0\.5; give a whole number"):
        policy.ask(file, question.text, seed=0.5)


def test_what_is_given_wrongly_is_said_in_one_line(policy, file, tmp_path, capsys):
    cut = io.BytesIO(file.read_bytes()[:9000])
    cases = [
        ((np.zeros((8, 8, 4), np.uint8), SEASON), "uint8 [8, 8, 4]; give uint8 [height, width, 3]"),
        ((np.zeros((8, 8, 3)), SEASON), "an array of float64 [8, 8, 3]; give uint8"),
        ((np.zeros((2, 8, 8, 3), np.uint8), SEASON), "an array of uint8 [2, 8, 8, 3]"),
        ((np.zeros((0, 8, 3), np.uint8), SEASON), "8 x 0 px"),
        ((Image.new("I;16", (8, 8)), SEASON), "Pillow's mode 'I;16' has no 8-bit channels"),
        ((Image.open(cut), SEASON), "broken image data"),
        (([file, np.zeros((8, 8))], SEASON), "image 2 of 2: an array of float64 [8, 8]; give uint8"),
        (([tmp_path / "gone.png"], SEASON), f"image 1 of 1: {tmp_path / 'gone.png'}: no such image file"),
        ((7, SEASON), "image: a int; give a path, an array uint8 [height, width, 3]"),
        ((tmp_path / "gone.png", SEASON), "gone.png: no such image file"),
        (([file, file], [SEASON]), "2 images and 1 questions"),
        (([], SEASON), "an empty list"),
        ((file, []), "an empty list"),
        ((file, 7), "a question is a text, not a int"),
        ((file, [SEASON, None]), "a question is a text, not a NoneType"),
        ((file,), "give an image and a question, or a Question"),
        ((file, "Why? " * 100), "layout.prompt-len"),
    ]
    for given, said in cases:
        with pytest.raises(ze.UserError) as caught:
            policy.ask(*given)
        assert said in str(caught.value), given
        assert "\n" not in str(caught.value)
    for settings, said in (
        ({"bands": (4, 3, 2)}, "band"),
        ({"stretch": "2%"}, "stretch: '2%'; give a tuple"),
        ({"bands": 3}, "bands: 3; give a tuple"),
        ({"stretch": (5, 1)}, "stretch: LOW must be below HIGH"),
    ):
        with pytest.raises(ze.UserError, match=re.escape(said)):
            ze.Image(file, **settings)
    with pytest.raises(ze.UserError, match="nanno: no such model; did you mean 'nano'"):
        ze.load("nanno")


def test_images_in_memory_keep_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    image = ArrayImage(pixels)
    assert image.frame == ze.Frame(84, 56)
    whole, size = ze.Box(0, 0, 84, 56, image.frame), ze.Frame(84, 56)
    before = pixels.copy()
    pixels[:] = 0
    np.testing.assert_array_equal(image.window(whole, size), before)
    grey = before[:, :, 0].copy()
    image = ArrayImage(grey)
    np.testing.assert_array_equal(image.window(whole, size), np.repeat(grey[:, :, None], 3, 2))
    other = ArrayImage(before[::-1, ::-1])  # not contiguous
    np.testing.assert_array_equal(other.window(whole, size), before[::-1, ::-1])
    bits = Image.fromarray(grey > 99)
    np.testing.assert_array_equal(ArrayImage(bits).window(whole, size)[:, :, 1], (grey > 99) * np.uint8(255))


def test_files_with_settings(scene, tmp_path):
    pixels = scene.window(ze.Box(0, 0, 1000, 1000, scene.frame), ze.Frame(400, 400))
    with rasterio.open(
        tmp_path / "deep.tif", "w", driver="GTiff", dtype="uint16", count=3, width=400, height=400
    ) as out:
        out.write(pixels.transpose(2, 0, 1)[::-1].astype(np.uint16) * 16)
    image = ze.Image(tmp_path / "deep.tif", bands=[3, 2, 1], stretch=[0, 16 * 255])
    np.testing.assert_array_equal(global_view(image, 112, 28), global_view(ArrayImage(pixels), 112, 28))
    assert repr(image) == f"Image({str(tmp_path / 'deep.tif')!r}, 400 x 400 px)"


def test_the_verb_says_the_note_too(policy, file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoomearth_jax.verbs.ask.load", lambda *args, **how: policy)
    Image.effect_noise((300, 200), 50).convert("RGB").save(tmp_path / "noise.png")
    note = "nano-grpo knows procedural scenes only; this image is none"
    for path, expected in ((tmp_path / "noise.png", note), (file, None)):
        assert cli.main(["ask", str(path), SEASON, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["note"] == expected
        assert cli.main(["ask", str(path), SEASON]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert (f"note    {note}" in printed) == (expected is not None)
        assert printed[-1].startswith("answer  ")


def test_other_models_give_no_note(policy, monkeypatch):
    monkeypatch.setattr(policy, "name", "my/model")
    assert policy.ask(np.zeros((30, 40), np.uint8), SEASON).note == ""


def test_the_package_is_imported_fast_and_lists_its_names():
    code = (
        "import sys, zoomearth_jax as ze, zoomearth_jax.cli as cli; cli.main(['--version']); print(dir(ze)); "
        "print({'jax', 'numpy', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    version, names, loaded = done.stdout.splitlines()
    assert version == ze.__version__
    assert loaded == "set()"
    assert set(ze.__all__) <= set(eval(names))
    assert all(getattr(ze, name) is not None for name in ze.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        ze.laod  # noqa: B018


def test_the_page_of_the_documentation(policy, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert {kind for kind, _ in blocks} == {"", "python", "text"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ze, "load", lambda name: {"nano-grpo": policy}[name])
    names, said = {}, ""
    for kind, text in blocks:
        if kind == "text":
            assert said == text
        elif kind == "python":
            capsys.readouterr()
            exec(compile(text, "docs/python.md", "exec"), names)
            said = capsys.readouterr().out
        else:
            assert cli.main(text.split()[1:]) == 0
    with Image.open("answer.png") as shown:
        assert shown.size == names["answer"].show().size
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]
    listed = set(re.findall(r"\bze\.(\w+)", page))
    assert set(ze.__all__) - listed <= {"__version__", "Answer", "LoadedPolicy", "Frame"}
    assert listed <= set(ze.__all__)
