"""Programs in a terminal: one that has only ASCII, and one in which Ctrl-C is pressed early."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.project import Project

ASCII = ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})


@pytest.mark.parametrize("environment", ASCII, ids=lambda names: next(iter(names)))
def test_letters_that_a_terminal_lacks_are_escaped(project: Project, environment: dict[str, str]) -> None:
    project.write("stages/speaking.py", 'print("logged as performance·1a2b, from models/größe.onnx")\n')
    outcome = project.run(sys.executable, "-m", "stages.speaking", env=environment)
    assert outcome.output == "logged as performance\\xb71a2b, from models/gr\\xf6\\xdfe.onnx\n"
    assert outcome.code == 0


@pytest.mark.parametrize("interrupt", [True, False])
def test_an_interrupt_during_imports_is_one_line(project: Project, interrupt: bool) -> None:
    project.write("slow_library.py", "print('importing', flush=True)\nimport time\ntime.sleep(30)\n" if interrupt else "1 / 0\n")
    project.write("stages/slow.py", "import slow_library\nfrom stages.stage import execute\nexecute('slow', lambda: None)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.slow"],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    if interrupt:
        assert process.stdout.readline() == "importing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    if interrupt:
        assert errors == "slow: interrupted\n"
    else:  # a defect keeps its traceback
        assert errors.startswith("Traceback") and "ZeroDivisionError" in errors
