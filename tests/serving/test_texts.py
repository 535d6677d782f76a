"""Text as it grows: no character in pieces, nothing of a stop text, and nothing lost."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from zoomearth_jax.serving.texts import Texts

LETTERS = "abé日🛰 "


def decode(ids) -> str:
    """Ids that are bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def said(text: str, stop=(), cuts=()) -> tuple[list[str], Texts]:
    """The pieces in which a text comes out whose bytes arrive in stretches."""
    texts, ids = Texts(decode, stop), list(text.encode())
    bounds = [0, *sorted(cuts), len(ids)]
    pieces = [texts.add(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return [*pieces, texts.add([], last=True)], texts


def test_a_character_is_given_when_it_is_whole():
    texts = Texts(decode)
    first, second = "é".encode()
    assert [texts.add([i]) for i in (97, first, second, 98)] == ["a", "", "é", "b"]


def test_half_a_character_at_the_end_is_not_lost():
    texts = Texts(decode)
    assert texts.add([97, 0xC3]) == ""
    assert texts.add([], last=True) == "a\ufffd"
    assert texts.text == "a\ufffd"


def test_what_could_become_a_stop_text_is_held_back():
    texts = Texts(decode, ["END"])
    assert [texts.add(list(piece)) for piece in (b"aE", b"N", b"xE", b"ND of it")] == ["a", "", "ENx", ""]
    assert texts.ended
    assert texts.text == "aENx"
    assert decode(texts.ids) == "aENxEND"  # ids after it don't count


def test_the_first_of_several_stop_texts_ends_it():
    pieces, texts = said("one two three", ["three", "two", "ee"])
    assert "".join(pieces) == texts.text == "one "


@given(st.text(LETTERS, max_size=12), st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2), st.data())
def test_pieces_are_the_text_up_to_the_first_stop(text, stop, data):
    size = len(text.encode())
    pieces, texts = said(text, stop, data.draw(st.lists(st.integers(0, size), max_size=6)))
    found = [place for one in stop if (place := text.find(one)) >= 0]
    assert "".join(pieces) == texts.text == (text[: min(found)] if found else text)
    assert texts.ended == bool(found)
    assert "\ufffd" not in "".join(pieces)
