"""A process ends with its parent, also with one that was gone before it asked."""

import importlib.util
import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import ROOT, alive, until
from worker.agent import PRELOAD, PRELOAD_WITHOUT_CUDA
from worker.lifeline import AGENT

SCRIPT = """
import os, sys, time
from worker.lifeline import IMPORTED_BY, die_with_parent
late = sys.argv[1] == "late"
child = os.fork()
if child:
    print(child, flush=True)
    time.sleep(0 if late else 1)
    os._exit(0)  # before its child has asked, or after
os.close(1)  # whoever reads it does not wait for this one
while late and os.getppid() == IMPORTED_BY:
    time.sleep(0.01)
die_with_parent(IMPORTED_BY)
time.sleep(60)
"""


@pytest.mark.parametrize("asks", ["early", "late"])
def test_no_child_outlives_its_parent(asks: str) -> None:
    command = [sys.executable, "-c", SCRIPT, asks]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    child = int(done.stdout)
    time.sleep(0.2)
    until(lambda: not psutil.pid_exists(child) or not alive([psutil.Process(child)]), 30)


@pytest.mark.parametrize("lives", [True, False])
def test_a_forkserver_whose_agent_has_died_meanwhile_does_not_begin(lives: bool) -> None:
    """One that began had nobody to end it: it lived, with its ranks, for as long as the machine."""
    command = [sys.executable, "-c", "import worker.preload"]
    environment = {**os.environ, AGENT: str(os.getpid() if lives else 2**22 + 1)}
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == (not lives)


@pytest.mark.parametrize("name", PRELOAD + PRELOAD_WITHOUT_CUDA)
def test_what_is_to_be_preloaded_is_there(name: str) -> None:
    """The forkserver goes on in silence without what it can't import."""
    assert importlib.util.find_spec(name)
