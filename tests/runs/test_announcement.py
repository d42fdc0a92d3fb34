"""What a run says before it begins."""

from pathlib import Path

import pytest

from camguide_fast.config import Config, Distillation
from camguide_fast.data.split import Record, Split
from camguide_fast.runs.announcement import unpaired

HINGE = Config(stage1=Distillation(cls_loss="hinge"), stage2=Distillation(cls_loss="hinge", lambda_cls=0.0))


def split(classes: int, *tags: tuple[int, ...]) -> Split:
    names = tuple(f"class {k}" for k in range(classes))
    return Split(Path(), "train", names, tuple(Record(str(i), Path(f"{i}.jpg"), t, None) for i, t in enumerate(tags)))


@pytest.mark.parametrize(
    "data, said",
    [
        (split(1, (0,), ()), "with a single class no image has a pair for the hinge of stage1;"),
        (split(3, (0,), (), (0, 1, 2), (1, 2)), "2 images, of no tag or all, lack a pair for the hinge of stage1;"),
    ],
)
def test_images_that_the_hinge_has_no_pair_of(data, said):
    text = unpaired(HINGE, data)
    assert text and text.startswith(f"warning: {said}") and text.endswith("taken by the soft margin")
    assert unpaired(Config(), data) is None  # no stage has the hinge


def test_nothing_is_said_where_all_have_pairs():
    assert unpaired(HINGE, split(3, (0,), (1, 2))) is None
