"""How many processes run the tests."""

from types import SimpleNamespace

import conftest
import pytest

SOURCE = pytest.Config.ArgsSource


def chosen(source=SOURCE.TESTPATHS, keyword="", asked=None, xdist=True) -> tuple:
    option = SimpleNamespace(numprocesses=asked, maxprocesses=None, dist="no", keyword=keyword)
    plugins = SimpleNamespace(hasplugin=lambda name: xdist)
    conftest.pytest_cmdline_main(SimpleNamespace(args_source=source, option=option, pluginmanager=plugins))
    return option.numprocesses, option.dist


def test_the_whole_suite_takes_all_cores(monkeypatch):
    monkeypatch.setattr(conftest, "SHARES_CORES", False)
    assert chosen() == ("auto", "worksteal")
    for case in (dict(source=SOURCE.ARGS), dict(keyword="one"), dict(xdist=False)):
        assert chosen(**case) == (None, "no"), case
    assert chosen(asked=0) == (0, "no")


def test_a_process_of_several_starts_no_others(monkeypatch):
    """pytest-xdist calls the hook in each of its processes too."""
    monkeypatch.setattr(conftest, "SHARES_CORES", True)
    assert chosen() == (None, "no")
