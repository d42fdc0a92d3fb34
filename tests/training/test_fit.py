"""The training loop: stopped anywhere, it ends with the same weights."""

import json
import os
import signal
import threading

import pytest
import torch
from torch import nn

from camguide_fast.config import Classification, Distillation, Optimizer
from camguide_fast.data import Split, make_demo, open_split, train_loader
from camguide_fast.data import loader as loader_module
from camguide_fast.errors import UserError
from camguide_fast.method.stages import ClassificationStage, DistillationStage
from camguide_fast.models import CamNet, build_trunk
from camguide_fast.training.fit import Job, fit
from camguide_fast.training.ranks import Where

CPU = Where(torch.device("cpu"))
SETTINGS = Classification(epochs=2, batch_size=4, optimizer=Optimizer(lr=0.01))


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Split:
    return open_split(make_demo(tmp_path_factory.mktemp("demo"), train=12, val=2, size=48), "train")


class Stopped(Exception):
    pass


class StopAt(nn.Module):
    """A stage that is cut off in the middle of an iteration, as a kill would."""

    def __init__(self, stage: nn.Module, at: int):
        super().__init__()
        self.stage, self.at = stage, at

    def forward(self, batch, step, progress):
        if step == self.at:
            raise Stopped
        return self.stage(batch, step, progress)


def make_job(settings) -> Job:
    torch.manual_seed(3)
    net = CamNet(build_trunk("resnet18"), 5)
    if isinstance(settings, Distillation):
        teacher = CamNet(build_trunk("resnet18"), 5)
        return Job("stage1", settings, DistillationStage(net, teacher, settings), net, ["classifier"], select=True)
    return Job("teacher", settings, ClassificationStage(net, settings), net, ["classifier"])


def run(split, folder, settings, stop_at=None) -> dict:
    job = make_job(settings)
    if stop_at is not None:
        job.module = StopAt(job.module, stop_at)
    loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=0)
    fit(job, loader, folder, CPU, seed=0, save_every=2)
    return job.net.state_dict()


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images_per_s"} for record in records]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        Classification(epochs=2, batch_size=4, optimizer=Optimizer("adam", lr=1e-3, schedule="plateau", patience=1)),
        Distillation(epochs=2, batch_size=4, optimizer=Optimizer(lr=0.01), cls_loss="hinge"),
        Classification(epochs=2, batch_size=4, optimizer=Optimizer(lr=0.01), average=0.8),
    ],
    ids=["sgd-poly", "adam-plateau", "stage1-with-selection", "averaged"],
)
def test_stopped_anywhere_it_ends_with_the_same_bits(split, tmp_path, settings):
    whole = run(split, tmp_path / "whole", settings)
    for stop in (1, 3, 5):  # before anything was saved, after an epoch's end, in the last epoch
        with pytest.raises(Stopped):
            run(split, tmp_path / "parts", settings, stop_at=stop)
    parts = run(split, tmp_path / "parts", settings)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    ends = [[line for line in lines(tmp_path / run) if line.get("event")] for run in ("whole", "parts")]
    assert ends[0] == ends[1] and len(ends[0]) == 2


@pytest.fixture(scope="module")
def whole(split, tmp_path_factory) -> dict:
    """The weights that an uninterrupted training with SETTINGS ends with."""
    return run(split, tmp_path_factory.mktemp("whole"), SETTINGS)


def test_ctrl_c_saves_the_step_and_raises(split, whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    job = make_job(SETTINGS)
    forward = job.module.forward

    def interrupt(batch, step, progress):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(batch, step, progress)

    job.module.forward = interrupt
    loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=0)
    with pytest.raises(KeyboardInterrupt):
        fit(job, loader, tmp_path / "cut", CPU, seed=0, save_every=100)
    state = torch.load(tmp_path / "cut/checkpoints/teacher.state.pt", weights_only=True)
    assert state["step"] == 5  # the step that was under way is finished, not lost
    resumed = run(split, tmp_path / "cut", SETTINGS)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number, workers", [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_a_signal_while_a_batch_is_waited_for_ends_at_once(split, whole, tmp_path, monkeypatch, number, workers):
    """A disk that hangs from the fifth batch of four on: the four steps are saved, and go on to the same weights."""
    read, calls, never = loader_module.read_image, [], threading.Event()

    def hangs(path):
        calls.append(path)
        if len(calls) > 16:
            never.wait(120)
        return read(path)

    monkeypatch.setattr(loader_module, "read_image", hangs)
    before = signal.getsignal(number)
    job = make_job(SETTINGS)
    forward = job.module.forward

    def last_but_two(batch, step, progress):
        if step == 3:  # the signal comes a while after this step
            threading.Timer(1, os.kill, (os.getpid(), number)).start()
        return forward(batch, step, progress)

    job.module.forward = last_but_two
    loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=workers)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(job, loader, tmp_path / "cut", CPU, seed=0, save_every=100)
    finally:
        never.set()
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut/checkpoints/teacher.state.pt", weights_only=True)["step"] == 4
    resumed = run(split, tmp_path / "cut", SETTINGS)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert signal.getsignal(number) is before


def test_a_signal_while_an_epoch_is_measured_ends_at_once_and_it_is_measured_again(split, tmp_path):
    settings = Distillation(epochs=2, batch_size=4, optimizer=Optimizer(lr=0.01), cls_loss="hinge")
    whole = run(split, tmp_path / "whole", settings)

    def interrupt(net):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=0)
    with pytest.raises(KeyboardInterrupt):
        fit(make_job(settings), loader, tmp_path / "cut", CPU, seed=0, save_every=100, on_epoch=interrupt)
    state = torch.load(tmp_path / "cut/checkpoints/stage1.state.pt", weights_only=True)
    assert (state["step"], state["epoch"]) == (3, 0)
    resumed = run(split, tmp_path / "cut", settings)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    ends = [[line for line in lines(tmp_path / run) if line.get("event")] for run in ("whole", "cut")]
    assert ends[0] == ends[1] and len(ends[0]) == 2


def test_a_nan_loss_stops_with_the_setting_to_turn_and_keeps_the_last_good_state(split, tmp_path):
    job = make_job(SETTINGS)
    forward = job.module.forward

    def poisoned(batch, step, progress):
        parts = forward(batch, step, progress)
        if step == 3:
            names.extend(split.records[i].name for i in batch["index"])
        return parts | {"loss": parts["loss"] * float("nan")} if step >= 3 else parts

    names = []
    job.module.forward = poisoned
    loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=0)
    with pytest.raises(UserError, match=r"not finite at iteration 4 \(loss\).*--teacher.optimizer.lr") as error:
        fit(job, loader, tmp_path, CPU, seed=0, save_every=2)
    assert len(names) == 4 and f"of the images {', '.join(names)};" in str(error.value)
    state = torch.load(tmp_path / "checkpoints/teacher.state.pt", weights_only=True)
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["net"].values() if value.is_floating_point())


def test_learning_rate_follows_the_polynomial(split, tmp_path):
    job = make_job(SETTINGS)
    seen = []
    forward = job.module.forward
    loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=0)
    import camguide_fast.training.fit as module

    build = module.build_optimizer
    module.build_optimizer = lambda *a, **k: seen.append(build(*a, **k)) or seen[0]
    rates = []
    job.module.forward = lambda b, s, p: rates.append(seen[0].param_groups[0]["lr"]) or forward(b, s, p)
    try:
        fit(job, loader, tmp_path, CPU, seed=0, save_every=100)
    finally:
        module.build_optimizer = build
    assert rates == pytest.approx([0.01 * (1 - t / 6) ** 0.9 for t in range(6)])


def test_the_average_of_the_weights(split, tmp_path):
    def ends_with(average, seen=None):
        job = make_job(Classification(epochs=1, batch_size=4, optimizer=Optimizer(lr=0.01), average=average))
        forward, weight = job.module.forward, job.net.classifier.weight
        if seen is not None:
            job.module.forward = lambda *a: seen.append(weight.detach().clone()) or forward(*a)
        loader = train_loader(split, batch_size=4, crop=48, long_side=(40, 60), seed=0, workers=0)
        fit(job, loader, tmp_path / str(average), CPU, seed=0, save_every=100)
        return weight.detach()

    seen = []
    last = ends_with(0.0, seen)
    _, first, second = seen  # before each of the three steps
    torch.testing.assert_close(ends_with(0.75), 0.75 * (0.75 * first + 0.25 * second) + 0.25 * last)
