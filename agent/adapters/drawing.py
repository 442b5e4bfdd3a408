"""Answers drawn upon the pictures that were asked about, for people to look at."""

from __future__ import annotations

import binascii
import io
from base64 import b64decode
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from agent.adapters.pictures import PALETTE, by, open_indices, open_picture
from agent.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

# One colour for each label, told apart on metal, on skin and by the colour-blind (Okabe and Ito).
_PALETTE = ("#d55e00", "#0072b2", "#f0e442", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

_OPACITY = 0.5  # of a mask


def annotate(picture: bytes, answer: Mapping[str, Any]) -> bytes:
    """Draw an answer upon the picture that was asked about; return it as a PNG, upright.

    Args:
        picture: the JPEG or PNG.
        answer: what `agent.answers.answer` returned: boxes and labels are drawn for a heatmap
            or detection, a mask is laid upon it for a segmentation, the top labels or a line for
            each tensor are written for the other tasks.

    Raises:
        InputError: if it is neither a JPEG nor a PNG, damaged or too large; or the mask is.
    """
    image = open_picture(picture).convert("RGB")
    if answer["task"] == "segmentation":
        _lay_mask(image, answer)
    side = max(image.size)
    board = _Board(image, ImageDraw.Draw(image), ImageFont.load_default(max(12, side // 50)))
    if answer["task"] in {"heatmap", "detection"}:
        colours = dict(zip(answer["counts"], _PALETTE * len(answer["counts"]), strict=False))
        for found in answer["objects"]:
            x0, y0, x1, y1 = found["box"]
            box = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
            colour = colours[found["label"]]
            board.pen.rectangle(box, outline=colour, width=max(2, side // 300))
            board.tag((box[0], box[1]), _scored(found), colour)
        totals = ", ".join(f"{label} {count}" for label, count in answer["counts"].items())
        lines = [totals or "nothing found"]
    elif answer["task"] == "segmentation":
        for found in answer["regions"]:
            x, y, *_ = found["box"]
            board.tag((x * image.width, y * image.height), _shared(found), _colour(found["index"]))
        lines = [_shared(found) for found in answer["regions"]] or ["nothing found"]
    elif answer["task"] == "classification":
        lines = [_scored(entry) for entry in answer["top"]]
    else:
        lines = [f"{out['name']} {by(out['shape'])} {out['dtype']}" for out in answer["outputs"]]
    board.tag((0, 0), "\n".join(lines), "#ffffff")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _scored(entry: Mapping[str, Any]) -> str:
    label, score = str(entry["label"]), entry["score"]
    return label if score is None else f"{label} {score:.2g}"


def _shared(region: Mapping[str, Any]) -> str:
    return f"{region['label']} {region['share']:.1%}"


def _colour(index: int) -> str:
    """Return the colour of a class in a mask."""
    return "#" + bytes(PALETTE[3 * index : 3 * index + 3]).hex()


def _lay_mask(image: Image.Image, answer: Mapping[str, Any]) -> None:
    """Colour the regions of a segmentation's answer in the picture."""
    mask = answer["mask"]
    try:
        content = b64decode(mask["png"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the answer's mask is no base64: {error}") from error
    indices = open_indices(content)
    regions = np.zeros(256, np.uint8)
    regions[[found["index"] for found in answer["regions"]]] = round(255 * _OPACITY)
    x0, y0, x1, y1 = mask["box"]
    left, top = round(x0 * image.width), round(y0 * image.height)
    right, bottom = round(x1 * image.width), round(y1 * image.height)
    size = (max(1, right - left), max(1, bottom - top))
    scaled = indices.resize(size, Image.Resampling.NEAREST)
    shade = Image.fromarray(regions[np.asarray(scaled)])
    scaled.putpalette(PALETTE)
    image.paste(scaled.convert("RGB"), (left, top), shade)


class _Board(NamedTuple):
    """A picture that is being drawn upon."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont

    def tag(self, corner: tuple[float, float], text: str, colour: str) -> None:
        """Write `text` on a patch of `colour` on top of `corner`, or below it for want of room."""
        left, top, right, bottom = self.pen.multiline_textbbox((0, 0), text, font=self.font)
        width, height = right - left + 6, bottom - top + 6
        x = min(max(0, corner[0]), max(0, self.image.width - width))
        y = corner[1] - height if corner[1] >= height else corner[1]
        self.pen.rectangle((x, y, x + width, y + height), fill=colour)
        red, green, blue = ImageColor.getrgb(colour)[:3]
        bright = 299 * red + 587 * green + 114 * blue > 128_000  # noqa: PLR2004 - of 255,000
        ink = "black" if bright else "white"
        self.pen.multiline_text((x + 3 - left, y + 3 - top), text, fill=ink, font=self.font)
