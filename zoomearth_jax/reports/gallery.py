"""What the pages of episodes share: cards with thumbnails, filters, and the room that a page has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoomearth_jax.files import write_file
from zoomearth_jax.reports.episode_rows import place_thumbnails
from zoomearth_jax.reports.page import json_block, part, policy, render

MAX_BYTES = 64_000_000  # of a page
_BLOCK = 32  # pictures of a script element, which the page reads when one of them is looked at
_ROOM_FOR_THE_REST = 200_000  # bytes: tables, plots, style, script


def write_gallery(
    path,
    name: str,
    found: list[dict],
    thumbnails: Sequence[tuple[Mapping, Mapping]],
    max_bytes: int,
    *,
    settings: Mapping[str, Any],
    counted: str,
    **values: Any,
) -> None:
    """Writes a page of cards.

    Args:
        name: of the page's own template and script in this folder, which go behind those of the gallery.
        found: what the cards show; gets the places of pictures.
        thumbnails: see `place_thumbnails`.
        max_bytes: about how large the page may be; cards that find no room for their thumbnails go without.
        settings: what the script is told.
        counted: what the cards are, in the plural.
        values: what else the template needs.

    Raises:
        UserError: the page can't be written.
    """
    script, style = part("gallery.js") + part(f"{name}.js"), part("episodes.css")
    room = max_bytes - len(json_block(found)) - _ROOM_FOR_THE_REST
    pictures, left_out = place_thumbnails(found, thumbnails, room)
    blocks = [pictures[start : start + _BLOCK] for start in range(0, len(pictures), _BLOCK)]
    page = render(
        f"{name}.html.j2",
        policy=policy(script, style),
        script=script,
        style=style,
        data=json_block({**settings, "block": _BLOCK, "counted": counted}),
        rows=json_block(found),
        blocks=[json_block(block) for block in blocks],
        left_out=left_out,
        total=len(found),
        counted=counted,
        **values,
    )
    write_file(path, page)
