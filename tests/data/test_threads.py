"""Threads that read ahead: order, errors, how far, and that nothing waits for them that should end."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
import torch

from camguide_fast.data import loading_threads, threads
from camguide_fast.data.threads import read_ahead, usable_cores

FAR = 120  # seconds that nothing here takes, on any machine


def readers() -> int:
    return sum(thread.name == "reader" for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_values_come_in_order_whatever_the_threads(count):
    def read(key):
        time.sleep(0.002 * (key % 3))
        return key * key

    assert list(read_ahead(read, range(30), count, ahead=7)) == [key * key for key in range(30)]


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_comes_at_its_place_with_its_traceback(count):
    def read(key):
        if key == 3:
            raise ZeroDivisionError("of key 3")
        return key

    values, seen = read_ahead(read, range(9), count, ahead=4), []
    with pytest.raises(ZeroDivisionError, match="of key 3") as caught:
        for value in values:
            seen.append(value)
    assert seen == [0, 1, 2]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "read"


def test_it_reads_no_further_than_asked():
    started = []
    values = read_ahead(lambda key: started.append(key) or key, range(100), 2, ahead=5)
    next(values)
    deadline = time.monotonic() + FAR
    while len(started) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(started) == list(range(6))  # the one that was taken, and five in front


def test_an_abandoned_pass_leaves_no_thread():
    values = read_ahead(lambda key: key, range(100), 3, ahead=5)
    next(values)
    assert readers() >= 3
    values.close()
    deadline = time.monotonic() + FAR
    while readers() and time.monotonic() < deadline:  # those of earlier tests end too
        time.sleep(0.01)
    assert readers() == 0


BLOCKED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from camguide_fast.data.threads import read_ahead
def read(key):
    print("reading", flush=True)
    time.sleep(3600)
for _ in read_ahead(read, range(4), 1, 2):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_read_that_hangs_does_not_keep_the_program(number):
    child = subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "reading\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=FAR)
    assert child.returncode == -number and ("KeyboardInterrupt" in err) == (number == signal.SIGINT)


SHORT_OF_SHARED_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from camguide_fast.data import full_images, open_split, train_loader
root = Path(sys.argv[1])
for i in range(64):
    Image.fromarray(np.full((40, 60, 3), i * 3, np.uint8)).save(root / f"{i}.jpg")
(root / "tags.csv").write_text("image,tags\\n" + "".join(f"{i}.jpg,{'ab'[i % 2]}\\n" for i in range(64)))
split = open_split(root, "train")
loader = train_loader(split, batch_size=32, crop=512, long_side=(320, 640), seed=0, workers=4)
print(sum(len(batch["index"]) for epoch in range(2) for batch in loader.epoch(epoch)), len(list(full_images(split, 4))))
"""


def test_no_shared_memory_is_needed(tmp_path):
    """A batch has 25 MB; /dev/shm has 4 kB here, and nothing is left of them."""
    private = ["unshare", "-m", "sh", "-c"]
    mount = "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
    try:
        possible = subprocess.run([*private, mount], capture_output=True, timeout=FAR).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("needs to mount a small /dev/shm: root, and unshare")
    command = [*private, f'{mount} && exec "$0" -c "$1" "$2"', sys.executable, SHORT_OF_SHARED_MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FAR)
    assert done.stdout.split() == ["128", "64"], done.stderr


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, 12),
        ({"cpu.max": "max 100000"}, 12),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "9900000 100000"}, 12),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 12),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_cores_are_those_of_the_container(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    quota = threads._quota
    monkeypatch.setattr(threads, "_quota", lambda: quota(tmp_path))
    assert usable_cores() == cores


@pytest.mark.parametrize(
    "cores, gpu, processes, expected",
    [(1, False, 1, 1), (2, False, 1, 1), (8, False, 1, 2), (96, False, 1, 8), (16, True, 1, 8), (16, True, 8, 1)],
)
def test_auto_follows_the_machine(monkeypatch, cores, gpu, processes, expected):
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loading_threads("auto") == expected
    assert loading_threads(0) == 0 and loading_threads(5) == 5
