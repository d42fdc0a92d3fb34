"""Masks against tags: what is said of masks that show other classes than their images have, and what is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camguide_fast.data import VOC_PALETTE, Split, compare_with_tags, make_demo, mask_check, open_split
from camguide_fast.errors import DataError

ANIMALS = ("cat", "cow", "dog")
SETS = [("cat",), ("cow",), ("dog",), ("cat", "dog"), ("cow", "dog"), ()]


def make(root: Path, tags, values, void: bool = True, classes: tuple[str, ...] = (), write=None) -> Split:
    """A tagged folder whose masks show, for each tag of the image, the value that `values` gives it, and a void border;
    `values[""]` is the background."""
    (root / "masks").mkdir(parents=True)
    lines = ["image,tags,split"]
    for i, names in enumerate(tags):
        Image.new("RGB", (24, 16)).save(root / f"{i:02}.jpg")
        mask = np.full((16, 24), values.get("", 0), np.uint8)
        for k, name in enumerate(names):
            mask[2:12, 2 + 8 * k : 8 + 8 * k] = values[name]
        if void:
            mask[0] = 255
        (write or (lambda path, mask: Image.fromarray(mask).save(path)))(root / f"masks/{i:02}.png", mask)
        lines.append(f"{i:02}.jpg,{';'.join(names)},val")
    (root / "tags.csv").write_text("\n".join(lines))
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))
    return open_split(root, "val")


def fails(split: Split, **settings) -> str:
    with pytest.raises(DataError) as caught:
        compare_with_tags(split, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def right(names=ANIMALS) -> dict[str, int]:
    return {name: i + 1 for i, name in enumerate(names)}


def test_masks_that_fit_are_passed_in_silence(tmp_path):
    assert compare_with_tags(make(tmp_path / "a", SETS, right())) == []
    named = ("dog", "cat", "cow")
    assert compare_with_tags(make(tmp_path / "b", SETS, right(named), classes=named)) == []
    assert compare_with_tags(open_split(make_demo(tmp_path / "demo", train=12, val=4, size=48), "train")) == []


def test_photographs_fit(voc):
    assert compare_with_tags(open_split(voc, "val")) == []


def test_classes_in_alphabetical_order(tmp_path):
    split = make(tmp_path, SETS, right(), classes=("dog", "cat", "cow"))
    said = fails(split)
    assert said.startswith(f"{tmp_path}: in 5 of 5 images of split 'val' the mask contradicts the tags (most often ")
    assert "masks/00.png shows dog, tagged cat; masks/01.png shows cat, tagged cow" in said
    assert "in alphabetical order (1 cat, 2 cow, 3 dog), where classes.txt has 1 dog, 2 cat, 3 cow; name the" in said
    assert said.endswith("; --trust-masks goes on with them as they are")
    (line,) = compare_with_tags(split, trust=True)
    assert line == f"warning: {said.removesuffix('; --trust-masks goes on with them as they are')}"


def test_classes_in_another_order_than_the_alphabet(tmp_path):
    said = fails(make(tmp_path, SETS, right(("dog", "cow", "cat"))))
    assert "3 of 5 images" in said  # cow and cat with dog look right
    assert "in another order (1 dog, 3 cat), where the tags, sorted, are 1 cat, 3 dog; name the classes in the" in said


@pytest.mark.parametrize("void", [True, False])
def test_255_for_the_object(tmp_path, void):
    split = make(tmp_path, [("crack",)] * 3 + [()] * 5, {"crack": 255}, void)
    said = fails(split)
    assert "in 3 of 3 images" in said and "most often no crack 3; masks/00.png shows nothing, tagged crack" in said
    assert "; 255, which is void, seems to stand for the object; write 1 crack; --trust-masks" in said


def test_0_1_255_of_one_class_is_right(tmp_path):
    assert compare_with_tags(make(tmp_path, [("crack",)] * 3 + [()], {"crack": 1})) == []


def test_some_masks_with_255_for_the_object_are_a_warning(tmp_path):
    split = make(tmp_path, [("crack",)] * 6, {"crack": 1}, void=False)
    for record in split.records[:2]:
        Image.fromarray(np.array(Image.open(record.mask)) * 255).save(record.mask)
    (line,) = compare_with_tags(split)
    assert line.startswith(f"warning: {tmp_path}: in 2 of 6 images") and "255, which is void, seems" in line


@pytest.mark.parametrize("value, says", [(255, "they are void (255) everywhere"), (0, "nothing but background (0)")])
def test_masks_that_show_nothing(tmp_path, value, says):
    assert says in fails(make(tmp_path, SETS, {"": value, **dict.fromkeys(ANIMALS, value)}, void=False))


def test_one_void_mask_among_many_is_normal(tmp_path):
    split = make(tmp_path, SETS * 4, right())
    Image.new("L", (24, 16), 255).save(split.records[0].mask)
    assert compare_with_tags(split) == []


def test_a_few_contradictions_are_a_warning_without_a_guess(tmp_path):
    split = make(tmp_path, SETS * 4, right())
    for record in split.records[:2]:
        Image.fromarray(np.full((16, 24), 3, np.uint8)).save(record.mask)
    (line,) = compare_with_tags(split)
    assert "in 2 of 20 images" in line and "most often dog 2; masks/00.png shows dog, tagged cat" in line
    assert "no other reading of the masks explains it" in line and "--trust-masks" not in line


def test_an_order_that_explains_the_few_and_not_the_many_is_no_guess(tmp_path):
    named = ("dog", "cat", "cow")
    split = make(tmp_path, [("cat",), ("cow",), ("dog",)] * 6, right(named), classes=named)
    for record, label in zip(split, (1, 2, 3), strict=False):  # by the alphabet
        Image.fromarray(np.full((16, 24), label, np.uint8)).save(record.mask)
    (line,) = compare_with_tags(split)
    assert "in 3 of 18 images" in line and "no other reading of the masks explains it" in line


def test_a_tag_that_nearly_all_images_have_does_not_mislead(tmp_path):
    split = make(tmp_path, [("dog",)] * 6 + [("cat", "cow")] * 5, {"dog": 1, "cat": 2, "cow": 3})
    everywhere = replace(split, records=tuple(replace(r, tags=tuple({*r.tags, 1})) for r in split))
    assert "in another order (1 dog, 2 cat, 3 cow), where" in fails(everywhere)


def test_a_tag_without_a_pixel_is_weak_evidence(tmp_path):
    split = make(tmp_path, SETS * 2, right())
    with_two = replace(split, records=tuple(replace(r, tags=(0, 1, 2)) if r.tags else r for r in split))
    assert compare_with_tags(with_two) == []
    Image.fromarray(np.full((16, 24), 2, np.uint8)).save(split.records[5].mask)  # which has no tag
    (line,) = compare_with_tags(with_two)
    assert "in 1 of 11 images" in line and "; in 10 more a tag has no pixel; " in line


@pytest.mark.parametrize(
    "values, says",
    [
        ({"": 255, "cat": 0, "cow": 1, "dog": 2}, "count the classes from 0, without a background; add 1"),
        ({"": 1, "cat": 2, "cow": 3, "dog": 4}, "count the classes from 2; subtract 1"),
        ({"cat": 38, "cow": 75, "dog": 113}, "hold the grey of VOC's colours; export them as palette or RGB images"),
        ({"cat": 8, "cow": 10, "dog": 12}, "have VOC's own numbers (8 cat, 10 cow, 12 dog); write 1 cat, 2 cow, 3 dog"),
        ({"cat": 60, "cow": 120, "dog": 180}, "60 cat, 120 cow, 180 dog, it seems; write 1 cat, 2 cow, 3 dog"),
    ],
    ids=["from 0", "from 2", "grey", "VOC", "others"],
)
def test_other_values_for_the_classes(tmp_path, values, says):
    split = make(tmp_path, SETS[:5], values, void=False)
    assert says in fails(split)


def test_a_label_that_is_no_class_is_named_before_anything_is_scored(tmp_path):
    split = make(tmp_path, SETS, right())
    Image.fromarray(np.full((16, 24), 7, np.uint8)).save(split.records[3].mask)
    for trust in (False, True):  # which does not make it a class
        said = fails(split, trust=trust)
        assert (
            said
            == f"{split.records[3].mask}: label 7 in the mask, expected 0 to 3 or 255; so 1 of 6 masks of split 'val'"
        )
    assert compare_with_tags(split, skip_bad=True) == []


def test_a_resized_mask(tmp_path):
    ramp = np.linspace(0, 250, 24).astype(np.uint8) * np.ones((16, 1), np.uint8)
    said = fails(make(tmp_path, SETS, right(), write=lambda path, _: Image.fromarray(ramp).save(path)))
    assert "such masks were resized with interpolation or saved as JPEG" in said


def test_colours_and_reordered_palettes_are_no_contradiction(tmp_path):
    def reordered(path, mask):
        order = np.unique(mask)[::-1]
        picture = Image.fromarray(np.searchsorted(-order.astype(int), -mask.astype(int)).astype(np.uint8))
        picture.putpalette(VOC_PALETTE[order].tobytes())
        picture.save(path)

    assert compare_with_tags(make(tmp_path / "a", SETS, right(), write=reordered)) == []
    coloured = lambda path, mask: Image.fromarray(VOC_PALETTE[mask]).save(path)  # noqa: E731
    assert compare_with_tags(make(tmp_path / "b", SETS, right(), write=coloured)) == []


def test_an_encoder_reordered_palettes_that_are_not_vocs(tmp_path):
    """Their colours have no meaning here, but they differ from image to image."""
    own = np.array([(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)

    def reordered(path, mask):
        used = np.unique(mask)[::-1]  # the background last
        picture = Image.fromarray((len(used) - 1 - np.searchsorted(used[::-1], mask)).astype(np.uint8))
        picture.putpalette(own[used].tobytes())
        picture.save(path)

    said = fails(make(tmp_path, SETS * 2, right(), void=False, write=reordered))
    assert "their palettes differ, so that an encoder seems to have changed the indices; write them as grey PNG" in said


def test_sizes(tmp_path):
    split = make(tmp_path, SETS, right())
    Image.new("L", (16, 24)).save(split.records[1].mask)
    assert fails(split) == f"{split.records[1].mask}: the mask is 16x24, its image is 24x16 (width x height)"
    assert compare_with_tags(split, skip_bad=True) == []
    split.records[1].mask.write_bytes(b"no mask")
    assert fails(split, trust=True).startswith(f"{split.records[1].mask}: not a readable mask")


def test_a_mask_is_turned_as_its_photograph(tmp_path):
    split, exif = make(tmp_path, SETS, right()), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 24)).save(split.records[0].image, exif=exif)  # as wide as its mask once it is turned
    assert compare_with_tags(split) == []
    Image.new("RGB", (24, 16)).save(split.records[0].image, exif=exif)
    said, hint = (
        "the mask is 24x16, its image is 16x24 (width x height)",
        "which its EXIF orientation turns: turn the mask",
    )
    assert fails(split) == f"{split.records[0].mask}: {said}, {hint} as well"


def test_without_tags_nothing_is_compared(tmp_path):
    split = make(tmp_path, SETS, right(("dog", "cow", "cat")))
    unknown = replace(split, records=tuple(replace(r, tags=None) for r in split))
    assert compare_with_tags(unknown) == []
    assert compare_with_tags(replace(split, records=tuple(replace(r, mask=None) for r in split))) == []


def test_of_a_large_split_a_sample_is_read_and_that_is_said(tmp_path, monkeypatch):
    split = make(tmp_path, SETS * 2, right())
    monkeypatch.setattr(mask_check, "MASKS", 4)
    read = []
    see = mask_check._see
    monkeypatch.setattr(mask_check, "_see", lambda record, count: read.append(record.name) or see(record, count))
    assert compare_with_tags(split) == ["val: the masks of 4 of 12 images were compared with the tags"]
    assert sorted(read) == ["00", "03", "06", "09"]
