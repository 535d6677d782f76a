"""The files for the map that `zoomearth ask` writes: boxes as GeoJSON, and the crop where it belongs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of, located
from zoomearth_jax.data_pipeline.images.regions import write_region
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.images.tiles import expanded
from zoomearth_jax.evaluation.asking import Answer
from zoomearth_jax.reports.geojson import Placed, check_geojson, write_geojson
from zoomearth_jax.terminal.progress import say
from zoomearth_jax.verbs.places import check_is_other, region_place


@dataclasses.dataclass(frozen=True)
class MapFiles:
    """Where the last crop and the boxes go; None where nobody asked for them.

    Attributes:
        image: the image that is asked about.
        crop, geojson: the files.
        where: where the image lies, which `geojson` needs.
    """

    image: ImageSource
    crop: Path | None
    geojson: Path | None
    where: Georeference | None

    @classmethod
    def checked(cls, image: ImageSource, name: Path, crop: Path | None, geojson: Path | None) -> MapFiles:
        """Checks what can be checked before the model runs.

        Args:
            name: the image's name.

        Raises:
            UserError: a file can't be written, is the image itself, or needs a georeference that the image lacks.
        """
        where = None
        if crop is not None:
            crop = region_place("--save-crop", crop, name)
            georeference_of(image)  # refused now, if it can't be read
        if geojson is not None:
            geojson, where = expanded(geojson), located(image, name, "--geojson")
            for file in check_geojson(geojson, [where]):
                check_is_other(file, "--geojson", name)
        return cls(image, crop, geojson, where)

    def write(self, answer: Answer, known: Mapping[str, Any]) -> None:
        """Writes them.

        Args:
            known: properties of all boxes.
        """
        if self.crop is not None:
            self._write_crop(self.crop, answer)
        if self.geojson is not None and self.where is not None:
            write_geojson(self.geojson, self._placed(answer, self.where, known), [self.where])

    def _write_crop(self, path: Path, answer: Answer) -> None:
        for turn in reversed(answer.turns):
            if turn.window is not None and turn.picture is not None and turn.picture.size:
                write_region(path, turn.picture, self.image, turn.window)
                return
        say(f"{path}: not written, since the model was shown no crop")

    def _placed(self, answer: Answer, where: Georeference, known: Mapping[str, Any]) -> list[Placed]:
        """The boxes and windows of all turns."""
        return [
            Placed(box, where, {**known, "turn": number, "kind": kind})
            for number, turn in enumerate(answer.turns, 1)
            for kind, box in (("box", turn.box), ("window", turn.window))
            if box is not None
        ]
