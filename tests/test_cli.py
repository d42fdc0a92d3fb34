"""How a command ends: quietly, or with one line on stderr."""

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
