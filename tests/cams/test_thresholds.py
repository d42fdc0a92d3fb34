import numpy as np
import pytest

from camguide_fast.cams.thresholds import (
    THRESHOLDS,
    fit_classwise,
    fit_global,
    iou,
    label_map,
    mean_iou,
    sweep_confusion,
    sweep_histogram,
)

CAM = np.array([[[0.9, 0.4, 0.2, 0.1]], [[0.3, 0.5, 0.2, 0.0]]], np.float32)  # [2, 1, 4]
KEYS = np.array([1, 3])


def random_case(seed: int, present: int, num_classes: int = 4, size: tuple[int, int] = (13, 17)):
    rng = np.random.default_rng(seed)
    cam = rng.random((present, *size)).astype(np.float16)
    keys = np.sort(rng.permutation(num_classes)[:present])
    mask = rng.integers(0, num_classes + 1, size).astype(np.uint8)
    mask[rng.random(size) < 0.1] = 255
    return cam, keys, mask


def confusion_by_hand(labels: np.ndarray, mask: np.ndarray, num_labels: int) -> np.ndarray:
    out = np.zeros((num_labels, num_labels), np.int64)
    for p, t in zip(labels.ravel(), mask.ravel(), strict=True):
        if t != 255:
            out[t, p] += 1
    return out


def test_thresholds_are_the_usual_sweep():
    assert THRESHOLDS == (
        0.05,
        0.1,
        0.15,
        0.2,
        0.25,
        0.3,
        0.35,
        0.4,
        0.45,
        0.5,
        0.55,
        0.6,
        0.65,
        0.7,
        0.75,
        0.8,
    )


def test_global_threshold_is_strict_and_ties_take_the_first_class():
    assert label_map(CAM, KEYS, 0.15).tolist() == [[2, 4, 2, 0]]
    assert label_map(CAM, KEYS, 0.2).tolist() == [[2, 4, 0, 0]]  # .2 > .2 is false


def test_classwise_takes_the_best_among_those_that_pass():
    limits = [0.0, 0.2, 0.0, 0.6]
    assert label_map(CAM, KEYS, limits).tolist() == [[2, 2, 2, 0]]  # pixel 1: class 3 is larger, yet under its .6
    assert label_map(CAM, KEYS, [1.0, 1.0, 1.0, 0.5]).tolist() == [[0, 4, 0, 0]]  # .5 >= .5


def test_no_class_present_is_background():
    empty = np.zeros((0, 2, 3), np.float16)
    for thresholds in (0.3, [0.3, 0.4]):
        labels = label_map(empty, np.zeros(0, np.int64), thresholds)
        assert labels.shape == (2, 3) and labels.dtype == np.uint8 and not labels.any()


@pytest.mark.parametrize("thresholds", [-0.1, 1.5, float("nan"), [0.1, 0.2], [[0.1]]])
def test_bad_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        label_map(CAM, KEYS, thresholds)


def test_keys_must_fit():
    with pytest.raises(ValueError, match="P keys"):
        label_map(CAM, np.array([1]), 0.2)


def test_sweep_equals_scoring_each_threshold():
    thresholds = (0.05, 0.2, 0.5, 0.75, 0.95)
    total, expected = 0, np.zeros((5, 5, 5), np.int64)
    for seed, present in enumerate((0, 1, 2, 4)):
        cam, keys, mask = random_case(seed, present)
        total = total + sweep_histogram(cam, keys, mask, 4, thresholds)
        for t, threshold in enumerate(thresholds):
            expected[t] += confusion_by_hand(label_map(cam, keys, threshold), mask, 5)
    assert np.array_equal(sweep_confusion(total), expected)


def test_sweep_on_the_threshold_itself():
    cam = np.full((1, 1, 1), 0.3, np.float32)  # in fp64 the fp32 number .3 is above .3
    hist = sweep_histogram(cam, np.array([0]), np.array([[1]], np.uint8), 1, (0.2, 0.3, 0.4))
    assert sweep_confusion(hist)[:, 1].tolist() == [[0, 1], [1, 0], [1, 0]]


def test_ignored_everywhere():
    cam, keys, mask = random_case(0, 2)
    assert not sweep_histogram(cam, keys, np.full_like(mask, 255), 4).any()


def test_mask_of_another_size():
    cam, keys, mask = random_case(0, 2)
    with pytest.raises(ValueError, match="mask"):
        sweep_histogram(cam, keys, mask[1:], 4)


def test_iou_by_hand():
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    values = iou(confusion)
    assert values[:2].tolist() == [6 / 9, 3 / 6] and np.isnan(values[2])
    assert mean_iou(confusion) == pytest.approx((6 / 9 + 3 / 6) / 2)
    predicted_only = np.array([[6, 0, 2], [0, 4, 0], [0, 0, 0]])  # a class that is only predicted counts, with 0
    assert mean_iou(predicted_only) == pytest.approx((6 / 8 + 1 + 0) / 3)


def test_fits():
    thresholds = (0.1, 0.2, 0.3)
    sweep = np.zeros((3, 4, 4), np.int64)
    sweep[:, 0, 0] = 10
    # class 0 is best at .1, class 1 at .3, class 2 is never hit
    for t, (a, b) in enumerate([(9, 1), (6, 5), (1, 8)]):
        sweep[t, 1, 1], sweep[t, 1, 0] = a, 10 - a
        sweep[t, 2, 2], sweep[t, 2, 0] = b, 10 - b
        sweep[t, 3, 0] = 4
    best = thresholds[int(np.nanmean(iou(sweep), -1).argmax())]
    assert fit_global(sweep, thresholds) == best == 0.2
    assert fit_classwise(sweep, thresholds) == (0.1, 0.3, 0.2)


def test_of_equal_thresholds_the_lowest():
    sweep = np.broadcast_to(np.diag([3, 2]), (4, 2, 2))
    assert fit_global(sweep, (0.1, 0.2, 0.3, 0.4)) == 0.1
    assert fit_classwise(sweep, (0.1, 0.2, 0.3, 0.4)) == (0.1,)
