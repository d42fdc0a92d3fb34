"""Batches: the same whatever the workers, and from any position; broken files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast.data import Record, Split, full_images, read_image, train_loader, train_view, write_mask
from camguide_fast.errors import DataError


@pytest.fixture
def split(tmp_path) -> Split:
    rng = np.random.default_rng(1)
    records = []
    for i in range(11):
        height, width = int(rng.integers(20, 40)), int(rng.integers(20, 40))
        path, mask = tmp_path / f"im{i}.png", tmp_path / f"m{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        write_mask(mask, rng.integers(0, 3, (height, width)))
        records.append(Record(f"im{i}", path, (i % 2,), mask if i else None))
    return Split(tmp_path, "train", ("a", "b"), tuple(records))


def _loader(split, **changes):
    settings = {"batch_size": 2, "crop": 24, "long_side": (16, 48), "seed": 3, "workers": 0}
    return train_loader(split, **(settings | changes))


def _same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys() and a["skipped"] == b["skipped"]
        for key in ("image", "valid", "label", "index"):
            assert torch.equal(a[key], b[key]), key


def _break(split: Split, *indices: int) -> None:
    for index in indices:
        path = split.records[index].image
        path.write_bytes(path.read_bytes()[:-60])


def test_batch(split):
    loader = _loader(split)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 5
    seen = torch.cat([batch["index"] for batch in batches])
    assert len(set(seen.tolist())) == 10
    for batch in batches:
        assert set(batch) == {"image", "valid", "label", "index", "name", "skipped"} and batch["skipped"] == []
        assert batch["name"] == [split.records[i].name for i in batch["index"]]
        assert batch["image"].shape == (2, 3, 24, 24) and batch["image"].dtype == torch.uint8
        assert batch["image"].is_contiguous()
        assert batch["valid"].shape == (2, 1, 24, 24) and batch["valid"].dtype == torch.bool
        assert batch["label"].dtype == torch.float32 and batch["index"].dtype == torch.int64
        assert torch.equal(batch["label"], split.labels[batch["index"]])
    assert not torch.cat([batch["valid"] for batch in batches]).all()


def test_an_item_depends_on_seed_epoch_and_index_alone(split):
    for batch in _loader(split).epoch(4):
        for image, valid, index in zip(batch["image"], batch["valid"], batch["index"].tolist(), strict=True):
            rng = np.random.default_rng([3, 4, index])
            expected, where = train_view(read_image(split.records[index].image), rng, 24, (16, 48))
            np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
            np.testing.assert_array_equal(valid[0], where)


def test_epochs_and_seeds_differ(split):
    orders = {
        tuple(torch.cat([batch["index"] for batch in _loader(split, seed=seed).epoch(epoch)]).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6


def test_workers_change_nothing_and_an_abandoned_epoch_leaves_no_trace(split):
    plain, workers = _loader(split), _loader(split, workers=2)
    _same(list(plain.epoch(0)), list(workers.epoch(0)))
    next(workers.epoch(5))
    _same(list(plain.epoch(1)), list(workers.epoch(1)))
    _same(list(plain.epoch(0)), list(workers.epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_anywhere(split, workers):
    whole, loader = list(_loader(split).epoch(2)), _loader(split, workers=workers)
    for start in range(6):
        _same(whole[start:], list(loader.epoch(2, start)))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(split, workers):
    before = torch.get_rng_state()
    list(_loader(split, workers=workers).epoch(0))
    list(full_images(split, workers))
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_share_an_epoch(split):
    whole = [batch["index"] for batch in _loader(split, batch_size=4).epoch(1)]
    shares = [[batch["index"] for batch in _loader(split, rank=rank, world=2).epoch(1)] for rank in (0, 1)]
    assert len(whole) == len(shares[0]) == len(shares[1]) == 2
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch, torch.stack([first, second], 1).flatten())


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file_is_one_clear_error(split, workers):
    _break(split, 4)
    loader = _loader(split, batch_size=11, workers=workers)
    with pytest.raises(DataError, match=rf"^{split.records[4].image}: not a readable image \([^\n]+\)$"):
        list(loader.epoch(0))
    with pytest.raises(DataError):  # and again: the loader survives it
        list(loader.epoch(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_file_is_named_and_changes_nothing_else(split, workers):
    whole = next(_loader(split, batch_size=11).epoch(0))
    _break(split, 4, 7)
    batch = next(_loader(split, batch_size=11, workers=workers, skip_bad=True).epoch(0))
    keep = [i for i, index in enumerate(whole["index"].tolist()) if index not in (4, 7)]
    assert sorted(batch["skipped"]) == ["im4", "im7"] and len(keep) == 9
    for key in ("image", "valid", "label", "index"):
        assert torch.equal(batch[key], whole[key][keep])


def test_batch_with_nothing_left(split):
    _break(split, *range(11))
    with pytest.raises(DataError, match=r"all 2 images of a batch are broken; the first: .*not a readable image"):
        next(_loader(split, skip_bad=True).epoch(0))


def test_settings(split):
    with pytest.raises(DataError, match=r"split 'train' has 11 images, too few for a batch size of 12$"):
        _loader(split, batch_size=12)
    with pytest.raises(DataError, match=r"too few for a batch size of 6 on each of 2 ranks"):
        _loader(split, batch_size=6, world=2)
    for changes in (
        {"batch_size": 0},
        {"workers": -1},
        {"rank": 1},
        {"crop": 0},
        {"long_side": (5, 4)},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match="got"):
            _loader(split, **changes)
    for position in ((0, 6), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match="expected epoch >= 0 and start in 0..5"):
            next(_loader(split).epoch(*position))
    with pytest.raises(DataError, match="no tags are known"):
        _loader(replace(split, records=(replace(split.records[0], tags=None), *split.records[1:])))


@pytest.mark.parametrize("workers", [0, 2])
def test_full_images(split, workers):
    split = replace(split, records=(*split.records[:3], replace(split.records[3], tags=None)))
    images = full_images(split, workers)
    items = list(images)
    assert [item["name"] for item in items] == ["im0", "im1", "im2", "im3"] and len(images) == 4
    for item, record in zip(items, split, strict=True):
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), read_image(record.image))
        assert item["image"].is_contiguous() and item["image"].dtype == torch.uint8
    assert items[0]["mask"] is None and items[3]["label"] is None
    assert items[1]["mask"].dtype == torch.uint8 and items[1]["mask"].shape == items[1]["image"].shape[1:]
    assert items[1]["label"].tolist() == [0, 1] and items[2]["label"].tolist() == [1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_full_images_with_broken_files(split, workers):
    _break(split, 2)
    write_mask(split.records[5].mask, np.zeros((3, 3), int))
    with pytest.raises(DataError, match=r"^\S+im2.png: not a readable image"):
        list(full_images(split, workers))
    images = full_images(split, workers, skip_bad=True)
    assert [item["name"] for item in images] == [f"im{i}" for i in range(11) if i not in (2, 5)]
    assert images.skipped == ["im2", "im5"]
    good = replace(split, records=split.records[5:6])
    with pytest.raises(DataError, match=r"m5.png: the mask is 3x3, its image is"):
        list(full_images(good, workers))
    with pytest.raises(ValueError, match="workers"):
        full_images(split, -1)


def test_masks_travel_with_their_images(split):
    masked = replace(split, records=split.records[1:])
    batch = next(_loader(masked, with_masks=True).epoch(0))
    assert batch["mask"].dtype == torch.uint8 and batch["mask"].shape == (2, 24, 24)
    assert torch.equal(batch["mask"] == 255, ~batch["valid"][:, 0]) and (batch["mask"] == 1).any()
    assert "mask" not in next(_loader(split).epoch(0))


def test_an_image_without_the_mask_that_is_asked_for(split):
    record = replace(split.records[0], mask=None)
    with pytest.raises(DataError, match=f"{record.image.name}: has no mask"):
        next(_loader(replace(split, records=(record,) * 2), with_masks=True).epoch(0))
