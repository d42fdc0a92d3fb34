"""How a command ends: quietly, or with one line on stderr."""

import io
import sys

import pytest

from camguide_fast.cli import run_cli
from camguide_fast.errors import DataError


def test_run_cli(capsys):
    def raises(error):
        def function():
            raise error

        return function

    for error, code, text in (
        (DataError("x.jpg: broken"), 2, "error: x.jpg: broken\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_cli(raises(error))
        assert stop.value.code == code and capsys.readouterr().err == text
    with pytest.raises(ValueError):  # a bug keeps its traceback
        run_cli(raises(ValueError("bug")))


@pytest.mark.parametrize(
    "encoding, said", [("ascii", b"r\\xfcbe \\u6bd4"), ("latin-1", b"r\xfcbe \\u6bd4"), ("utf-8", "rübe 比".encode())]
)
def test_a_name_that_the_output_cannot_encode_is_printed_all_the_same(encoding, said, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    run_cli(lambda: print("rübe 比", end="", flush=True))
    assert written.getvalue() == said
