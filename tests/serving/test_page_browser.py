"""The server's page in a real Chromium, over a server without a model: uploading, asking, watching, drawing, faults, access.

Skipped where Playwright or Chromium is missing.
"""

import contextlib
import json

import pytest

from tests.serving.fake_server import BOX, HEIGHT, WIDTH, WINDOW, Fake, app, served, turns

HOSTILE = '<img src=x onerror=alert(1)></pre><script>alert(2)</script>"><b>x</b>&amp;\u202e'
QUESTION = "What colour is the roof?"


@pytest.fixture
def fake():
    return Fake()


@contextlib.contextmanager
def watched(browser, url):
    """Gives a function that opens the page; at the end nothing may have been complained about or asked of another server.

    Its list `expected` has parts of complaints that a test brings about (a browser logs refused requests by itself).
    """
    # the viewer's words on tiles that a closed view no longer needs
    wrong, expected = [], ["Image load aborted", "loaded before reset"]

    def open_page(width=1280, height=800, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or wrong.append(request.url))
        page.goto(url)
        page.evaluate(
            """() => {
                window.said = [];
                new MutationObserver(() => said.push(document.querySelector("#says").textContent))
                    .observe(document.querySelector("#says"), { childList: true, characterData: true, subtree: true });
            }"""
        )
        return page

    open_page.expected = expected
    yield open_page
    for context in browser.contexts:
        context.close()
    assert [line for line in wrong if not any(part in line for part in expected)] == []


@pytest.fixture
def opened(browser, fake):
    """Opens the page of the fake server."""
    with served(app(fake)) as url, watched(browser, url) as open_page:
        yield open_page


@pytest.fixture
def image(tmp_path):
    """A file that the fake server takes for an image."""
    path = tmp_path / "harbour.tif"
    path.write_bytes(bytes(20_000_000))
    return path


def with_image(page, path):
    """Uploads a file and waits until questions can be asked."""
    page.set_input_files("#file", path)
    page.wait_for_selector("#question:visible")
    page.wait_for_function("() => document.activeElement.id === 'question'")
    return page


def ask(page, question=QUESTION):
    page.fill("#question", question)
    page.click("#go")


def answered(page, text="blue"):
    page.wait_for_selector(f".payload:text-is('{text}')")
    page.wait_for_selector("#stop", state="hidden")
    return page


def settled(page):
    """Waits until the view stands still."""
    page.evaluate("window.count = 0")
    page.wait_for_function(
        """() => {
            const now = JSON.stringify([...document.querySelectorAll("#viewer .box")].map(box => box.getBoundingClientRect()));
            const still = window.before === now ? (window.count ?? 0) + 1 : 0;
            [window.before, window.count] = [now, still];
            return still > 5;
        }""",
        polling=60,
    )


def eventually(page, holds):
    """Waits until something holds that the page can't be asked for."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to hold within 5 s")


def on_screen(page, kind):
    """[x1, y1, x2, y2] of a box over the image, in px of the view."""
    return page.evaluate(
        """kind => {
            const box = document.querySelector(`#viewer .box.${kind}`).getBoundingClientRect();
            const view = document.querySelector("#viewer").getBoundingClientRect();
            return [box.left - view.left, box.top - view.top, box.right - view.left, box.bottom - view.top];
        }""",
        kind,
    )


def by_hand(page, box, width=WIDTH, height=HEIGHT):
    """Where a box lies when the whole image is in view: as large as fits, in the middle."""
    view = page.locator("#viewer").bounding_box()
    scale = min(view["width"] / width, view["height"] / height)
    left, top = (view["width"] - scale * width) / 2, (view["height"] - scale * height) / 2
    return [left + scale * box[0], top + scale * box[1], left + scale * box[2], top + scale * box[3]]


def test_upload_ask_and_watch(opened, fake, image):
    fake.part_seconds, fake.tiling, fake.held = 0.5, 1.0, 2
    page = opened()
    page.set_input_files("#file", image)
    page.wait_for_selector("text=Uploading harbour.tif")
    page.wait_for_selector("text=9 of 20 MB sent")
    assert page.get_attribute("#loading-bar", "value") == str(8 * 2**20 / 20e6)
    page.wait_for_selector("text=Making tiles")
    page.wait_for_selector("#question:visible")
    assert fake.parts == [8 * 2**20, 8 * 2**20, 20_000_000 - 16 * 2**20]
    assert page.text_content("#image-facts") == "3\u202f000\xa0×\xa02\u202f000\xa0px"
    ask(page)
    page.wait_for_selector(".said:text('over')")
    assert page.locator(".turns li").count() == 1
    assert page.locator("#viewer .box").count() == 0
    assert page.is_visible("#stop")
    fake.held = 4
    page.wait_for_selector("#viewer .box.named")
    assert page.locator(".turns figure").count() == 1
    fake.held = 6
    page.wait_for_selector("#viewer .box.window")
    page.wait_for_selector(".turns li:nth-child(2) img")
    assert page.locator(".payload").count() == 0
    fake.held = None
    answered(page)
    assert page.locator(".said").all_text_contents() == ["<think>over there</think>", "<think>it is blue</think>"]
    body = fake.asked[0]
    assert body["agent"] is True
    assert body["stream"] is True
    assert body["model"] == "fake-model"
    assert body["messages"][0]["content"] == [
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "text", "text": QUESTION},
    ]
    assert "box" not in body
    said = page.evaluate("said")
    wanted = [
        "Uploading harbour.tif",
        "Sent. The server makes tiles.",
        "harbour.tif is open, 3000 by 2000 px. Ask a question.",
        "Asked. Waiting for the model.",
        "The model asks for the box 1800, 600 to 2100, 900.",
        "The model writes turn 2.",
        "Answer: blue",
    ]
    assert said == wanted  # and no word of the text as it streams


def test_the_box_lies_where_it_is_and_the_view_goes_there(opened, image):
    page = with_image(opened(), image)
    page.uncheck("#follow")
    ask(page)
    answered(page)
    settled(page)
    for kind, box in (("named", BOX), ("window", WINDOW)):
        assert on_screen(page, kind) == pytest.approx(by_hand(page, box), abs=1.5)
    page.check("#follow")
    ask(page)
    page.wait_for_function("() => document.querySelectorAll('.exchange').length === 2")
    answered(page)
    settled(page)
    view = page.locator("#viewer").bounding_box()
    x1, y1, x2, y2 = on_screen(page, "window")
    assert x2 - x1 > view["width"] / 3 or y2 - y1 > view["height"] / 3
    assert (x1 + x2) / 2 == pytest.approx(view["width"] / 2, abs=2)
    # the pixels under it are those of the image: the blue square fills the named box, and nothing outside of it is blue
    eventually(page, lambda: pixels(page, on_screen(page, "named")) == ["blue", "green"])
    page.click("#whole")
    settled(page)
    assert on_screen(page, "named") == pytest.approx(by_hand(page, BOX), abs=1.5)


def pixels(page, box):
    """The colours of the view in the middle of a box, and beside it."""
    return page.evaluate(
        """([x1, y1, x2, y2]) => {
            const view = document.querySelector("#viewer .openseadragon-canvas canvas"), ratio = view.width / view.clientWidth;
            const canvas = Object.assign(document.createElement("canvas"), { width: view.width, height: view.height });
            const copy = canvas.getContext("2d", { willReadFrequently: true });
            copy.drawImage(view, 0, 0);
            const at = (x, y) => [...copy.getImageData(x * ratio, y * ratio, 1, 1).data];
            const [inside, outside] = [at((x1 + x2) / 2, (y1 + y2) / 2), at(x2 + 0.2 * (x2 - x1), (y1 + y2) / 2)];
            return [inside, outside].map(([r, g, b]) => (b > 150 && g < 90 ? "blue" : b < 90 && g > 90 ? "green" : `${[r, g, b]}`));
        }""",
        box,
    )


def test_drawing_a_box(opened, fake, image):
    page = with_image(opened(), image)
    page.click("#draw")
    assert page.get_attribute("#draw", "aria-pressed") == "true"
    view = page.locator("#viewer").bounding_box()
    x1, y1, x2, y2 = by_hand(page, [300, 1200, 900, 1700])
    page.mouse.move(view["x"] + x2, view["y"] + y2)  # from corner to corner, backwards
    page.mouse.down()
    page.mouse.move(view["x"] + x1, view["y"] + y1, steps=4)
    page.mouse.up()
    assert page.get_attribute("#draw", "aria-pressed") == "false"
    drawn = [int(page.input_value(f"#{corner}")) for corner in ("x1", "y1", "x2", "y2")]
    assert drawn == pytest.approx([300, 1200, 900, 1700], abs=4)  # a px of the screen is 3.4 of the image
    assert on_screen(page, "asked") == pytest.approx([x1, y1, x2, y2], abs=2)
    ask(page)
    answered(page)
    assert fake.asked[0]["box"] == drawn
    assert page.text_content("#box-title") == "About the box {}, {} to {}, {}".format(*drawn)
    page.click("#box-title")
    page.click("#clear")
    assert page.text_content("#box-title") == "Ask about a box"
    ask(page)
    page.wait_for_function("() => document.querySelectorAll('.exchange').length === 2")
    answered(page)
    assert "box" not in fake.asked[1]
    page.click("#draw")
    page.keyboard.press("Escape")
    assert page.get_attribute("#draw", "aria-pressed") == "false"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("1", "2", "x", "4"), "A box needs four numbers"),
        (("1", "2", "3", ""), "A box needs four numbers"),
        (("10", "2", "10", "40"), "has no area"),
        (("0", "0", "3001", "10"), "leaves the image, which is 3\u202f000\xa0×\xa02\u202f000\xa0px"),
    ],
)
def test_a_wrong_box_is_not_sent(values, said, opened, fake, image):
    page = with_image(opened(), image)
    page.click("#box-part summary")
    for corner, value in zip(("x1", "y1", "x2", "y2"), values, strict=True):
        page.fill(f"#{corner}", value)
    ask(page)
    assert said in page.text_content("#fault p")
    assert fake.asked == []


def test_keys_alone(opened, fake, image):
    fake.tools = [{"type": "function", "function": {"name": "denoise", "description": "removes noise"}}]
    page, choosers = opened(), []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.wait_for_selector("#choose")

    def tab_to(selector, most=25):
        for _ in range(most):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} was not reached")

    tab_to("#choose")
    page.keyboard.press("Enter")
    eventually(page, lambda: choosers)
    choosers[0].set_files(image)
    page.wait_for_function("() => document.activeElement.id === 'question'")
    tab_to("#box-part summary")
    page.keyboard.press("Enter")
    for corner, value in zip(("x1", "y1", "x2", "y2"), BOX, strict=True):
        tab_to(f"#{corner}")
        page.keyboard.type(str(value))
    assert on_screen(page, "asked") == pytest.approx(by_hand(page, BOX), abs=2)
    tab_to("#tools-part summary")
    page.keyboard.press("Enter")
    tab_to("[name=tool]")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    for _ in range(15):
        if page.evaluate("document.activeElement.id") == "question":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    answered(page)
    assert fake.asked[0]["box"] == BOX
    assert fake.asked[0]["tools_offered"] == ["denoise"]
    tab_to(".chip")
    page.evaluate("document.querySelector('#viewer .openseadragon-canvas').focus()")
    page.click("#whole")
    settled(page)
    page.evaluate("document.querySelector('#viewer .openseadragon-canvas').focus()")
    before = on_screen(page, "named")
    page.keyboard.press("+")
    settled(page)
    larger = on_screen(page, "named")
    assert larger[2] - larger[0] > 1.05 * (before[2] - before[0])
    page.keyboard.press("ArrowRight")
    settled(page)
    assert on_screen(page, "named")[0] < larger[0] - 5
    page.keyboard.press("r")  # does not turn the image
    page.keyboard.press("0")
    settled(page)
    assert on_screen(page, "named") == pytest.approx(by_hand(page, BOX), abs=2)


def test_what_is_visible_becomes_the_box(opened, fake, image):
    page = with_image(opened(), image)
    page.click("#box-part summary")
    page.click("#visible")
    assert [page.input_value(f"#{corner}") for corner in ("x1", "y1", "x2", "y2")] == ["0", "0", "3000", "2000"]


def test_stop(opened, fake, image):
    fake.held = 2
    page = with_image(opened(), image)
    ask(page)
    page.wait_for_selector(".said:text('over')")
    page.click("#stop")
    page.wait_for_selector(".none:text('Stopped.')")
    assert page.evaluate("document.activeElement.id") == "go"
    eventually(page, lambda: fake.left)  # the server may stop too


def test_a_busy_server_and_another_try(opened, fake, image):
    opened.expected.append("429")
    fake.refusals = [(429, {"Retry-After": "7"}, "all rows are taken")]
    page = with_image(opened(), image)
    ask(page)
    page.wait_for_selector("#fault:visible")
    assert page.text_content("#fault p") == "The server is busy: all rows are taken. Try again in 7 s."
    assert page.input_value("#question") == QUESTION
    assert page.locator(".exchange").count() == 0
    page.click("#again")
    answered(page)
    assert page.is_hidden("#fault")


def test_faults_while_it_answers(opened, fake, image):
    page = with_image(opened(), image)
    fake.deltas = [*turns()[:3], {"error": {"message": "the model's memory is full"}}]
    ask(page)
    page.wait_for_selector("#fault:visible")
    assert page.text_content("#fault p") == "the model's memory is full"
    assert "the model's memory is full" in page.text_content(".answer")
    fake.deltas = turns(answer=None)
    ask(page)
    page.wait_for_selector(".none:text('The model gave no answer.')")
    assert page.is_hidden("#fault")


def test_a_key(opened, fake, image):
    opened.expected.append("401")
    fake.key = "correct horse"
    page = opened()
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The server refused this key")
    page.fill("#key", "correct horse")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model:text('fake-model')")
    with_image(page, image)
    ask(page)
    answered(page)
    page.click("#whole")
    settled(page)
    eventually(page, lambda: pixels(page, by_hand(page, BOX)) == ["blue", "green"])  # tiles are read with the key too
    page.reload()
    page.wait_for_selector("#model:text('fake-model')")
    assert page.is_hidden("#key-dialog")


def test_cancelled_and_refused_uploads(opened, fake, image, tmp_path):
    fake.part_seconds = 0.5
    page = opened()
    page.set_input_files("#file", image)
    page.wait_for_selector("text=9 of 20 MB sent")
    page.click("#cancel")
    page.wait_for_selector("#choose:visible")
    eventually(page, lambda: fake.cancelled)
    (tmp_path / "empty.png").touch()
    page.set_input_files("#file", tmp_path / "empty.png")
    page.wait_for_selector("#fault p:text('empty.png is empty')")


def test_history_stays_with_the_tab(opened, fake, image):
    opened.expected.append("404")
    page = with_image(opened(), image)
    ask(page)
    answered(page)
    fake.deltas = turns(answer="red")
    ask(page, "And now?")
    answered(page, "red")
    page.reload()
    page.click("#recent button")
    page.wait_for_selector(".exchange")
    assert page.locator(".asked-text").all_text_contents() == ["And now?", QUESTION]
    assert page.locator(".short").all_text_contents() == ["red", "blue"]
    page.click(".exchange:nth-child(2) summary")
    page.wait_for_selector(".exchange[open] .turns li:nth-child(2) img[src^=blob]")
    assert page.locator(".exchange[open] .said").all_text_contents()[0] == "<think>over there</think>"
    settled(page)
    assert on_screen(page, "named") == pytest.approx(by_hand(page, BOX), abs=2)
    assert "data:" not in page.evaluate("sessionStorage.getItem('zoomearth.history')")
    page.evaluate(
        "sessionStorage.setItem('zoomearth.history', sessionStorage.getItem('zoomearth.history').replaceAll('file-1', 'file-gone'))"
    )
    page.reload()
    page.click("#recent button")
    page.wait_for_selector("#fault p:text('no longer has harbour.tif')")
    assert page.is_hidden("#recent")


def test_exports(opened, fake, image, browser, tmp_path):
    fake.deltas = turns(HOSTILE, HOSTILE, answer=HOSTILE)
    page = with_image(opened(accept_downloads=True), image)
    ask(page, HOSTILE)
    page.wait_for_selector(".payload")
    with page.expect_download() as download:
        page.click("#boxes-out")
    assert download.value.suggested_filename == "harbour.boxes.json"
    saved = json.loads(download.value.path().read_text())
    assert saved["boxes"] == [{"box": BOX, "question": HOSTILE, "answer": HOSTILE}]
    with page.expect_download() as download:
        page.click("#report-out")
    report = tmp_path / "report.html"
    report.write_bytes(download.value.path().read_bytes())
    shown = browser.new_page()
    wrong = []
    shown.on("console", lambda message: wrong.append(message.text))
    shown.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    shown.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    shown.goto(f"file://{report}")
    assert shown.text_content("h2") == HOSTILE
    assert shown.locator("pre").all_text_contents() == [HOSTILE, HOSTILE]
    sizes = "[...document.images].map(picture => [picture.naturalWidth, picture.naturalHeight])"
    assert shown.evaluate(sizes) == [[1024, 683], [400, 400]]
    assert shown.locator("script").count() == 0
    assert wrong == []

    fake.crs = "EPSG:32633"
    page.click("#another")
    page.click("#recent button")
    page.wait_for_selector(".exchange")
    with page.expect_download() as download:
        page.click("text=GeoJSON")
    assert download.value.suggested_filename == "harbour.geojson"
    assert fake.boxes == [{"box": BOX, "question": HOSTILE, "answer": HOSTILE}]


def test_texts_stay_texts(opened, fake, tmp_path):
    fake.examples = [{"file_id": "file-2", "title": HOSTILE, "question": HOSTILE}]
    fake.tools = [{"type": "function", "function": {"name": HOSTILE, "description": HOSTILE}}]
    fake.deltas = turns(HOSTILE, HOSTILE, answer=HOSTILE)
    page = opened()
    page.wait_for_selector(".card")
    assert page.text_content(".card-title") == HOSTILE
    path = tmp_path / "<img src=x onerror=alert(3)>&.png"
    path.write_bytes(b"x")
    with_image(page, path)
    ask(page, HOSTILE)
    page.wait_for_selector(".payload")
    assert page.text_content(".payload") == HOSTILE
    assert page.text_content("#image-name") == path.name
    assert page.locator(".said").all_text_contents()[1] == HOSTILE
    assert page.locator("#panel b:text-is('x'), #panel script, img[src=x]").count() == 0


def test_broken_events_do_no_harm(opened, fake, image):
    fake.deltas = [
        {"content": "before any turn"},
        {"trace": {"event": "unknown"}},
        {"trace": {"event": "turn", "turn": 1}},
        {"content": "no box here"},
        {"trace": {"event": "look", "turn": 1, "box": None, "window": None}},
        {"trace": {"event": "turn", "turn": 2}},
        {"trace": {"event": "answer", "answer": "none needed"}},
    ]
    page = with_image(opened(), image)
    ask(page)
    answered(page, "none needed")
    assert page.locator("#viewer .box").count() == 0


def everything(page, fake, image):
    """Takes the page through its states, and stops in each."""
    yield "welcome", page.wait_for_selector(".card img:not([hidden])")
    fake.part_seconds = 0.6
    page.set_input_files("#file", image)
    yield "uploading", page.wait_for_selector("text=9 of 20 MB sent")
    page.wait_for_selector("#question:visible")
    page.click("#box-part summary")
    page.click("#tools-part summary")
    yield "ready", page.fill("#x1", "1")
    page.click("#clear")
    page.click("#draw")
    yield "drawing", page.wait_for_selector("#draw-layer")
    page.keyboard.press("Escape")
    fake.held = 5
    ask(page, "w" * 300)
    yield "asking", page.wait_for_selector("#viewer .box")
    fake.held = None
    yield "answered", page.wait_for_selector(".payload", timeout=15_000)
    page.wait_for_selector("#stop", state="hidden")
    page.click("#another")
    yield "recent", page.wait_for_selector("#recent button")
    page.click("#recent button")
    page.click(".exchange summary")
    yield "restored", page.wait_for_selector(".exchange[open] .turns li:nth-child(2) img[src^=blob]")
    fake.refusals = [(429, {"Retry-After": "7"}, "all rows are taken " + "x" * 200)]
    ask(page, "another one")
    yield "busy", page.wait_for_selector("#fault:visible")
    fake.key = "secret"
    page.click("#again")
    yield "key", page.wait_for_selector("#key-dialog[open]")


def furnish(fake):
    fake.examples = [
        {"file_id": f"file-{i}", "title": f"Scene {i} " + "long" * 20, "question": "How many sites are there?"}
        for i in (2, 3)
    ]
    fake.tools = [
        {"type": "function", "function": {"name": name, "description": "what it does " * 6}}
        for name in ("denoise", "s" * 80)
    ]
    fake.deltas = turns("<think>" + "t" * 400 + "</think>", "w" * 300, answer="a" * 200)


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 1920])
def test_nothing_sticks_out(width, opened, fake, image):
    opened.expected += ["429", "401"]
    furnish(fake)
    page = opened(width)
    for state, _ in everything(page, fake, image):
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, state
        assert (
            page.evaluate("(panel => panel.scrollWidth - panel.clientWidth)(document.querySelector('#panel'))") <= 0
        ), state


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")])
def test_axe_finds_nothing_serious(width, scheme, opened, fake, image):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python isn't installed"
    ).Axe()
    opened.expected += ["429", "401"]
    furnish(fake)
    page = opened(width, scheme=scheme)
    for state, _ in everything(page, fake, image):
        found = axe.run(page).response
        assert len(found["passes"]) > 15
        serious = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
        assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in serious] == [], state
        print(width, scheme, state, "moderate or minor:", [fault["id"] for fault in found["violations"]])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_a_report(scheme, opened, fake, image, browser, tmp_path):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python isn't installed"
    ).Axe()
    page = with_image(opened(accept_downloads=True), image)
    ask(page)
    answered(page)
    with page.expect_download() as download:
        page.click("#report-out")
    (tmp_path / "report.html").write_bytes(download.value.path().read_bytes())
    report = browser.new_context(color_scheme=scheme).new_page()
    report.goto(f"file://{tmp_path / 'report.html'}")
    assert axe.run(report).response["violations"] == []
    assert report.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_follow_the_system(scheme, opened):
    page = opened(scheme=scheme)
    for part in ("body", "#panel", "#drop"):
        colour = page.eval_on_selector(part, "part => getComputedStyle(part).backgroundColor")
        brightness = sum(int(value) for value in colour.removeprefix("rgb(").removesuffix(")").split(",")) / 3
        assert (brightness < 60) == (scheme == "dark")


def test_a_file_is_dropped(opened, fake):
    page = opened()
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["abc"], "dropped.png", { type: "image/png" }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }"""
    )
    page.wait_for_selector("#image-name:text('dropped.png')")
    assert fake.parts == [3]


def test_cancelling_while_tiles_are_made_removes_the_file(opened, fake, image):
    fake.tiling = 30
    page = opened()
    page.set_input_files("#file", image)
    page.wait_for_selector("text=Making tiles")
    page.click("#cancel")
    page.wait_for_selector("#choose:visible")
    eventually(page, lambda: fake.removed == ["file-1"])


def test_an_example_is_one_click_and_one_key(opened, fake):
    fake.examples = [{"file_id": "file-2", "title": "Five sites", "question": QUESTION}]
    page = opened()
    page.click(".card")
    page.wait_for_function("() => document.activeElement.id === 'go'")
    page.keyboard.press("Enter")
    answered(page)
    assert fake.asked[0]["messages"][0]["content"][0]["file"]["file_id"] == "file-2"
