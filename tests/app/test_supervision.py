"""Somebody is left to say how a run died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.app.tiny_run import ROOT

_CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGHUP, signal.{hanging_up})
import app.supervision
from pathlib import Path
from app.supervision import supervised, tell

app.supervision._PATIENCE = 0.5
folder = Path(sys.argv[1])

def work():
    folder.joinpath("pid").write_text(str(os.getpid()))
    {work}

sys.exit(supervised(work, lambda: folder.joinpath("tidied").touch()))
"""
_DEAF = """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    folder.joinpath("ready").touch()
    time.sleep(60)
"""


def _code(work: str, hanging_up: str = "SIG_DFL") -> str:
    return _CHILD.format(work=work.strip(), hanging_up=hanging_up)


def _start(folder: Path, work: str, hanging_up: str = "SIG_DFL") -> subprocess.Popen[str]:
    code = _code(work, hanging_up)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.01)


def _gone(pid: int) -> bool:
    """Whether a process has ended; what waits to be collected has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("status", [0, 65])
def test_the_status_is_that_of_the_work(status: int, tmp_path: Path) -> None:
    with _start(tmp_path, f"return {status}") as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (status, "", "")
    assert not (tmp_path / "tidied").exists()


def test_the_work_has_a_process_of_its_own(tmp_path: Path) -> None:
    with _start(tmp_path, "return 0") as process:
        process.communicate()
    assert int((tmp_path / "pid").read_text()) != process.pid


@pytest.mark.parametrize(
    ("death", "says"), [(signal.SIGKILL, "memory runs out"), (signal.SIGSEGV, "the run died of SIGSEGV")]
)
def test_a_death_is_told_in_one_line_and_tidied_up(death: signal.Signals, says: str, tmp_path: Path) -> None:
    with _start(tmp_path, f"os.kill(os.getpid(), {death:d})") as process:
        _, err = process.communicate()
    assert process.returncode == 70
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
    assert (tmp_path / "tidied").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_what_does_not_end_when_asked_is_ended(number: signal.Signals, status: int, tmp_path: Path) -> None:
    with _start(tmp_path, _DEAF) as process:
        _wait_for(tmp_path / "ready")
        process.send_signal(number)
        _, err = process.communicate()
    assert (process.returncode, err) == (status, "interrupted\n")
    assert (tmp_path / "tidied").exists()
    assert _gone(int((tmp_path / "pid").read_text()))


def test_asking_twice_changes_nothing(tmp_path: Path) -> None:
    """The second signal must not end the parent before it has tidied up."""
    with _start(tmp_path, _DEAF) as process:
        _wait_for(tmp_path / "ready")
        process.terminate()
        process.terminate()
        _, err = process.communicate()
    assert (process.returncode, err) == (143, "interrupted\n")
    assert (tmp_path / "tidied").exists()


@pytest.mark.parametrize("death", ["SIGSEGV", "SIGABRT"])
def test_what_happens_after_the_work_is_done_does_not_count(death: str, tmp_path: Path) -> None:
    """Results are published then; a library that fails while it is unloaded must not make them look like a failure."""
    work = f"""
    import atexit
    atexit.register(lambda: os.kill(os.getpid(), signal.{death}))
    print("done")
    return 0
    """
    with _start(tmp_path, work) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "done\n", "")


def test_a_launcher_may_ignore_the_end_of_children(tmp_path: Path) -> None:
    """A disposition that is handed down; with it the system would not say that the child ended."""
    launcher = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    code = _code("return 3")
    command = [sys.executable, "-c", launcher, sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")


def test_the_end_of_a_terminal_is_nothing_where_it_is_to_be_ignored(tmp_path: Path) -> None:
    """As under nohup: the parent lives on and does not hand it on. Of two signals the lower number comes first."""
    work = """
    signal.signal(signal.SIGHUP, lambda *_: os._exit(9))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    folder.joinpath("ready").touch()
    time.sleep(60)
    """
    with _start(tmp_path, work, "SIG_IGN") as process:
        _wait_for(tmp_path / "ready")
        process.send_signal(signal.SIGHUP)
        process.terminate()
        process.communicate()
    assert process.returncode == 3


@pytest.mark.parametrize("streams", [">/dev/full", ">&-", ">&- 2>&-"])
@pytest.mark.parametrize("status", [0, 65])
def test_the_status_holds_where_nobody_listens(streams: str, status: int, tmp_path: Path) -> None:
    code = _code(f"print('done'); tell('done'); return {status}")
    command = ["/bin/sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-c", code, str(tmp_path)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, cwd=ROOT, env=buffered, check=False, stderr=subprocess.DEVNULL, timeout=60)
    assert done.returncode == status
    assert not (tmp_path / "tidied").exists()


def test_an_error_in_the_work_stays_in_its_process(tmp_path: Path) -> None:
    with _start(tmp_path, "raise KeyboardInterrupt") as process:
        out, _ = process.communicate()
    assert (process.returncode, out) == (70, "")


def test_a_signal_is_handed_on(tmp_path: Path) -> None:
    work = """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    folder.joinpath("ready").touch()
    time.sleep(60)
    """
    with _start(tmp_path, work) as process:
        _wait_for(tmp_path / "ready")
        process.terminate()
        process.communicate()
    assert process.returncode == 7


def test_the_work_does_not_outlive_its_parent(tmp_path: Path) -> None:
    with _start(tmp_path, _DEAF) as process:
        _wait_for(tmp_path / "ready")
        process.kill()
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while not _gone(child):
        assert time.monotonic() < deadline, "it goes on working for nobody"
        time.sleep(0.01)


def test_a_killed_run_leaves_nothing_and_one_line(tmp_path: Path) -> None:
    """The real command: its child is killed as the system does where memory runs out."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", _KILLED_RUN, "-i", str(source), "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert done.stderr.splitlines()[-1].startswith("error: the run was killed, as happens where memory runs out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_group_is_one_line(number: signal.Signals, status: int, tmp_path: Path) -> None:
    """A terminal sends it to parent and child, and the parent hands it on once more."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", _SLOW_RUN, "-i", str(source), "-o", str(output)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert any(line == "slow\n" for line in process.stderr)
        os.killpg(process.pid, number)
        rest = process.stderr.read()
    assert (process.returncode, rest) == (status, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


_SLOW_RUN = """
import sys, time
import app.cli, app.study

def slow(*_):
    print("slow", file=sys.stderr, flush=True)
    for _ in range(600):
        time.sleep(0.1)

app.study._studies = slow
sys.exit(app.cli.entry())
"""
_KILLED_RUN = """
import os, signal, sys
import app.cli, app.study

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

app.study._studies = die
sys.exit(app.cli.entry())
"""


_WAITING = """
import threading
from app.cli import _interruptible
from app.outcome import Interrupted

try:
    with _interruptible():
        print("ready", flush=True)
        threading.Event().wait()
except Interrupted as interrupt:
    print("interrupted by", interrupt.exit_status, flush=True)
"""


def test_what_waits_for_another_thread_is_interrupted() -> None:
    """However long it would wait: no other signal has to come."""
    command = [sys.executable, "-c", _WAITING]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        try:
            assert process.communicate(timeout=30) == ("interrupted by 143\n", "")
        finally:
            process.kill()


_SUSPENDED = """
import time
from app.cli import _interruptible
from app.outcome import Interrupted

try:
    with _interruptible():
        print("ready", flush=True)
        for second in range(60):
            time.sleep(1.0)
except Interrupted as interrupt:
    print("interrupted by", interrupt.exit_status, flush=True)
"""


def test_what_was_stopped_and_goes_on_again_can_still_be_interrupted() -> None:
    """As by Ctrl-Z and fg; and nothing interrupts it meanwhile."""
    command = [sys.executable, "-c", _SUSPENDED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(5):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        assert process.communicate(timeout=30) == ("interrupted by 143\n", "")
