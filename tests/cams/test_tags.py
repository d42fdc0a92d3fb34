"""Tag metrics."""

import numpy as np
import pytest
import torch

from camguide_fast.cams.tags import average_precision, best_f1_thresholds, mean_average_precision


def test_average_precision_by_hand():
    scores = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    label = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    assert average_precision(scores, label).tolist() == [pytest.approx((1 / 1 + 2 / 3) / 2)]


def test_ties_are_counted_together_and_missing_classes_left_out():
    scores = torch.zeros(4, 2)
    label = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 0]])
    ap = average_precision(scores, label)
    assert ap[0] == 0.25 and ap[1].isnan()
    assert mean_average_precision(scores, label) == 0.25


def test_average_precision_is_the_area_under_the_precision_recall_steps():
    rng = np.random.default_rng(0)
    scores, label = rng.normal(size=200), rng.random(200) < 0.3
    order = np.argsort(-scores)
    precision = np.cumsum(label[order]) / np.arange(1, 201)
    expected = precision[label[order]].mean()
    ours = average_precision(torch.tensor(scores)[:, None], torch.tensor(label)[:, None])
    assert ours.item() == pytest.approx(expected)


def test_best_f1_is_the_best_of_all_cuts():
    rng = np.random.default_rng(1)
    label = rng.random(60) < 0.4
    scores = label + rng.normal(size=60)
    (threshold,) = best_f1_thresholds(torch.tensor(scores)[:, None], torch.tensor(label)[:, None])

    def f1(t):
        taken = scores > t
        return 2 * (taken & label).sum() / (taken.sum() + label.sum())

    assert f1(threshold) == max(f1(t) for t in [*scores, scores.min() - 1])


def test_equal_scores_are_not_separated_and_unseen_classes_never_predicted():
    scores = torch.tensor([[1.0, 0], [1.0, 0], [0.0, 0]])
    label = torch.tensor([[1.0, 0], [0.0, 0], [0.0, 0]])
    first, second = best_f1_thresholds(scores, label)
    assert 0 < first < 1 and second == float("inf")
