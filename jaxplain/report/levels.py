"""An image's hierarchy for a person: a picture of each level."""

import numpy as np

from jaxplain.hierarchy import Hierarchy, components_at
from jaxplain.report import png
from jaxplain.report.trees import short
from jaxplain.types import JaxplainError


def image_levels(
    hierarchy: Hierarchy,
    units: np.ndarray,
    *,
    image: np.ndarray | None = None,
    most: int = 12,
) -> list[tuple[str, np.ndarray]]:
    """An image's hierarchy, level by level: groups in the colour of their scores.

    Args:
        hierarchy: of one image.
        units: `[H, W]` the unit of each pixel, -1 for none.
        image: `[H, W]` or `[H, W, C]`, shown pale where a level has selected nothing.
        most: pictures at most; of more levels the last ones are thinned.

    Returns:
        For each a caption and `[H, W, 3]` uint8; the first is of the units alone.
    """
    units = np.asarray(units)
    if units.ndim != 2 or units.max(initial=-1) >= len(hierarchy.unit_scores):
        raise JaxplainError(
            f"units must be a map [H, W] of 0 to {len(hierarchy.unit_scores) - 1}, and has shape "
            f"{list(units.shape)} and largest {units.max(initial=-1)}"
        )
    last = int(max(np.max(hierarchy.unit_level), np.max(hierarchy.level)))
    levels = list(range(1, last + 1))
    if len(levels) > most - 1:  # every level of the first half, then evenly
        half = (most - 1) // 2
        rest = np.linspace(half + 1, last, most - 1 - half).round().astype(int)
        levels = levels[:half] + sorted(set(rest.tolist()))
    units = png.thin(units)
    pale = np.broadcast_to(png.NEUTRAL, (*units.shape, 3))
    if image is not None:
        shown = png.picture(image)
        if shown.shape != pale.shape:
            raise JaxplainError(
                f"image has shape {list(np.shape(image))}, and needs the height and width of units"
            )
        pale = 0.65 * pale + 0.35 * shown
    held = units >= 0
    rows = [("each unit alone", np.asarray(hierarchy.unit_scores, np.float64))]
    for number in levels:
        place, scores = components_at(hierarchy, number)
        groups = len(np.unique(place[place >= 0]))
        rows.append((f"level {number}: {groups} {'group' if groups == 1 else 'groups'}", scores))
    pictures = []
    for name, scores in rows:
        spread = np.where(held, scores[units], np.nan)
        # Every picture has a scale of its own: a group's score grows with its size.
        strongest = float(np.nanmax(np.abs(spread), initial=0.0))
        share = np.nan_to_num(spread / strongest if strongest else spread)[:, :, None]
        end = np.where(share > 0, png.POSITIVE, png.NEGATIVE)
        tint = png.NEUTRAL + (end - png.NEUTRAL) * np.abs(share)
        pixels = np.where(np.isnan(spread)[:, :, None], pale, tint)
        real = spread[~np.isnan(spread)]  # a level selects at least one unit
        ends = [short(float(take(real)), strongest) for take in (np.min, np.max)]
        caption = f"{name}, {' to '.join(dict.fromkeys(ends))}"
        pictures.append((caption, np.rint(pixels).astype(np.uint8)))
    return pictures


def image_levels_html(
    hierarchy: Hierarchy, units: np.ndarray, *, image: np.ndarray | None = None, most: int = 12
) -> str:
    """`image_levels` as a row of pictures for a page."""
    shown = image_levels(hierarchy, units, image=image, most=most)
    if image is not None:
        shown.insert(0, ("the input", png.picture(image)))
    figures = (
        f'<figure style="margin:0;width:8rem"><img src="{png.data_uri(pixels)}" alt="{caption}" '
        'style="width:8rem;image-rendering:pixelated"><figcaption style="font-size:.75rem">'
        f"{caption}</figcaption></figure>"
        for caption, pixels in shown
    )
    style = "display:flex;flex-wrap:wrap;gap:.7rem"
    return f'<div class="levels" style="{style}">{"".join(figures)}</div>'
