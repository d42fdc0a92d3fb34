"""Draws the masks of a run beside photograph and truth: bench/results/voc_animals_masks.jpg.

    python bench/mask_sheet.py --run runs/quality/small-base-s0 --data voc_animals --out masks.jpg \\
        --names 2007_000676 2007_009841 2009_002549 2008_002152 2010_001908 2007_003714
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image, ImageDraw, ImageFont, ImageOps

from camguide_fast.cli import run_cli
from camguide_fast.data import open_split, read_image, read_mask
from camguide_fast.errors import UserError
from camguide_fast.pictures.overlays import overlay

COLUMNS = {"baseline": "baseline", "stage3": "stage 3", "walk": "+ walk", "final": "+ CRF"}
CELL, GAP, HEAD = (250, 170), 4, 22  # pixels


@dataclass(frozen=True)
class Sheet:
    run: Path
    """Folder of a run."""
    data: Path
    """The data set that it was scored on."""
    names: tuple[str, ...]
    """Images, from top to bottom."""
    out: Path
    """The picture."""
    split: str = "val"


def main(sheet: Sheet) -> None:
    split = open_split(sheet.data, sheet.split)
    records = {record.name: record for record in split}
    if unknown := [name for name in sheet.names if name not in records]:
        raise UserError(f"--names: split {sheet.split} of {sheet.data} has no {', '.join(unknown)}")
    titles = ["photograph", "truth", *COLUMNS.values()]
    step = (CELL[0] + GAP, CELL[1] + GAP)
    picture = Image.new("RGB", (step[0] * len(titles) - GAP, HEAD + step[1] * len(sheet.names) - GAP), "white")
    draw = ImageDraw.Draw(picture)
    for i, title in enumerate(titles):
        draw.text((i * step[0] + GAP, 1), title, fill="#22303a", font=ImageFont.load_default(15))
    for j, name in enumerate(sheet.names):
        photo = read_image(records[name].image)
        masks = [sheet.run / "masks" / stage / sheet.split / f"{name}.png" for stage in COLUMNS]
        drawn = [overlay(photo, read_mask(path, len(split.classes))) for path in (records[name].mask, *masks)]
        for i, cell in enumerate([photo, *drawn]):
            fitted = ImageOps.fit(Image.fromarray(cell), CELL, Image.Resampling.LANCZOS)
            picture.paste(fitted, (i * step[0], HEAD + j * step[1]))
    picture.save(sheet.out, quality=82)


if __name__ == "__main__":
    sheet = tyro.cli(Sheet, description=__doc__)
    run_cli(lambda: main(sheet))
