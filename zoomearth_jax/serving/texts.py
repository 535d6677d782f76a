"""Ids that arrive bit by bit -> text that never cuts a character, or a text that would end the reply, in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Texts:
    """The text of one reply as it grows.

    Attributes:
        ids: what was taken, stop tokens included. ended: whether one of the stop texts was reached; what comes after is left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        """Takes a tokenizer's `decode`, and texts that end the reply."""
        self._decode, self._stop = decode, stop
        self.ids: list[int] = []
        self.ended = False
        self._before, self._said = (
            0,
            0,
        )  # ids whose text has been given; those before them, with which the next are decoded
        self._held, self._parts = "", list[str]()

    @property
    def text(self) -> str:
        """All of the text, up to the one that ended it."""
        return "".join(self._parts) if self.ended else self._decode(self.ids)

    def add(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that is new and sure.

        Args:
            last: whether no more come, so that nothing is held back.
        """
        text = ""
        for some in [[i] for i in ids] if self._stop else [ids]:  # one by one, so that no id after a stop text counts
            if not self.ended:
                self.ids.extend(some)
                text += self._sure(last=False)
        if last:
            text += self._sure(last)
        self._parts.append(text)
        return text

    def _sure(self, last: bool) -> str:
        if self.ended:
            return ""
        known = self._decode(self.ids[self._before : self._said])
        grown = self._decode(self.ids[self._before :])
        if last or (len(grown) > len(known) and not grown.endswith("\ufffd")):
            self._held += grown[len(known) :]
            self._before, self._said = self._said, len(self.ids)
        return self._cut(last)

    def _cut(self, last: bool) -> str:
        """What is held, up to the first stop text or up to what could become one."""
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            sure, self._held = self._held[: min(found)], ""
            return sure
        kept = 0 if last else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        sure, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return sure


def _overlap(text: str, stop: str) -> int:
    """Letters at the end of the text that begin the stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
