"""The page's files, without a browser: what they load, and what they never do."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import zoomearth_jax

PAGE = Path(zoomearth_jax.__file__).parent / "serving" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))


class Tags(HTMLParser):
    """All tags with their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tags():
    parser = Tags()
    parser.feed((PAGE / "index.html").read_text())
    return parser.found


def test_everything_it_loads_is_here(tags):
    loaded = [values.get("src") or values["href"] for tag, values in tags if tag in ("script", "img", "link")]
    assert [path for path in loaded if path != "data:,"] == [
        "page/page.css",
        "page/openseadragon/openseadragon.min.js",
        "page/main.js",
    ]
    for script in SCRIPTS:
        for name in re.findall(r'from "\./(.+?)"', script.read_text()):
            assert (PAGE / name).is_file(), (script.name, name)
    assert "url(" not in (PAGE / "page.css").read_text()
    assert (PAGE / "openseadragon" / "LICENSE.txt").is_file()


def test_nothing_is_inline_which_the_policy_would_stop(tags):
    assert not [tag for tag, values in tags if tag == "style" or (tag == "script" and "src" not in values)]
    assert not [(tag, name) for tag, values in tags for name in values if name == "style" or name.startswith("on")]


def test_ids_stand_once_and_scripts_know_them(tags):
    ids = [values["id"] for _, values in tags if "id" in values]
    assert len(ids) == len(set(ids))
    used = {name for script in SCRIPTS for name in re.findall(r'(?:byId|show)\("([\w-]+)"', script.read_text())}
    assert len(used) > 30
    assert used <= set(ids)
    for tag, values in tags:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert values.get(name, ids[0]) in ids, (tag, values)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_of_texts(script):
    forbidden = (
        r"innerHTML|outerHTML *=|insertAdjacentHTML|document\.write|\beval\b|new Function|https?://(?!www\.w3\.org)"
    )
    assert not re.search(forbidden, script.read_text())
