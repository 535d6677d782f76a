"""A tool for tests: whatever a text says, it looks somewhere, and now and then it has seen enough."""

import zlib

from zoomearth_jax.data_pipeline.images.boxes import Box
from zoomearth_jax.tools.tool import Request

SIDES = (512, 640, 1024)


class Wander:
    """Looks at windows of several shapes that follow from the text; one text in five ends the episode."""

    def __init__(self, rows):
        self._rows = rows

    def request(self, text, view):
        number, frame = zlib.crc32(text.encode()), view.question.image.frame
        if number % 5 == 0:
            return "enough"
        width, height = SIDES[number % 3], SIDES[number // 3 % 3]
        x, y = number % (frame.width - width), number // 7 % (frame.height - height)
        return Request(True, None, Box(x, y, x + width, y + height, frame))

    def run(self, image, request):
        return self._rows.crop(image, request.window)
