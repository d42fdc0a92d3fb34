"""Files that are whole or not there, and one line that says why one cannot be written."""

import pytest
import torch

from camguide_fast.errors import UserError
from camguide_fast.files import write_atomic
from camguide_fast.training.state import load_state, save_state


def test_makes_its_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    for data in (b"first", b"second"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["c.bin"]


def test_what_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"/file: cannot be made a folder: File exists"):
        write_atomic(tmp_path / "file" / "x.bin", b"data")
    with pytest.raises(UserError, match=r"/file/deeper: cannot be made a folder: Not a directory"):
        write_atomic(tmp_path / "file" / "deeper" / "x.bin", b"data")
    with pytest.raises(UserError, match=r"/folder: cannot be written: Is a directory"):
        write_atomic(tmp_path / "folder", b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk", lambda data: data[: len(data) // 2]])
def test_a_damaged_state_says_what_helps(damage, tmp_path):
    path = tmp_path / "stage1.state.pt"
    save_state(path, {"step": 3, "net": {"weight": torch.ones(50)}})
    assert load_state(path)["step"] == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        UserError, match=r"stage1\.state\.pt: training state cannot be read .* trains the stage anew"
    ) as error:
        load_state(path)
    assert len(str(error.value).splitlines()) == 1
