"""The web page's jobs: a queue of commands that outlives the page and the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("fastapi")

from glmtune.run_dir import RunDir
from glmtune.webui import jobs as jobs_module
from glmtune.webui.errors import JobError
from glmtune.webui.jobs import Jobs, memory_of

# Stands for glmtune: `sleep` waits for a stop file or a signal, `exit N` ends, `say N` prints N lines.
COMMAND = """
import sys, time
from pathlib import Path
what, value = sys.argv[1], sys.argv[2]
if what == "sleep":
    print("started", flush=True)
    while not (Path(value) / "stop").exists():
        time.sleep(0.02)
    sys.exit(130)
if what == "exit":
    sys.exit(int(value))
for number in range(int(value)):
    print("line", number)
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """`make()`: a server's jobs; all of them share the folder. What still runs at the end is killed."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    monkeypatch.setattr(jobs_module, "COMMAND", (sys.executable, str(script)))
    yield lambda **named: Jobs(tmp_path / "jobs", tmp_path, **named)
    for file in (tmp_path / "jobs").glob("[!.]*.json"):
        state = json.loads(file.read_text())
        alive = state["state"] == "running" and psutil.pid_exists(state["pid"])
        if alive and psutil.Process(state["pid"]).create_time() == state["born"]:
            os.killpg(state["pid"], signal.SIGKILL)


def wait_for(jobs, job, *states, seconds=20):
    """The job once it is in one of the states."""
    end = time.monotonic() + seconds
    while (now := jobs.get(job.id)).state not in states:
        assert time.monotonic() < end, f"still {now.state}: {jobs.tail(job.id)}"
        time.sleep(0.02)
    return now


def run_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text("method: lora\n")
    return path


def started(jobs, job):
    """The job once its command itself runs."""
    end = time.monotonic() + 20
    while "started" not in jobs.tail(job.id):
        assert time.monotonic() < end
        time.sleep(0.02)
    return jobs.get(job.id)


def test_exit_codes_decide_how_a_job_ended(make):
    jobs = make()
    good = jobs.submit("eval", ["exit", "0"], "", "me")
    assert wait_for(jobs, good, "finished", "failed").exit_code == 0
    bad = jobs.submit("eval", ["exit", "3"], "", "me")
    ended = wait_for(jobs, bad, "finished", "failed")
    assert (ended.state, ended.exit_code) == ("failed", 3)
    assert ended.started <= ended.ended
    assert [job.id for job in jobs.list()] == [bad.id, good.id]


def test_one_runs_and_the_others_wait_in_order(make, tmp_path):
    jobs = make()
    runs = [run_folder(tmp_path / name) for name in "abc"]
    made = [jobs.submit("train", ["sleep", str(run)], str(run), "me") for run in runs]
    assert [jobs.get(job.id).state for job in made] == ["running", "queued", "queued"]
    assert memory_of(jobs.get(made[0].id)) > 1_000_000
    (runs[0] / "stop").touch()
    wait_for(jobs, made[1], "running")
    assert jobs.get(made[2].id).state == "queued"
    assert memory_of(jobs.get(made[0].id)) == 0


def test_two_browsers_starting_at_once_get_one_running_job_each_its_turn(make, tmp_path):
    servers = [make(), make()]
    barrier, made = threading.Barrier(8), []

    def start(number):
        barrier.wait()
        made.append(servers[number % 2].submit("eval", ["sleep", str(tmp_path)], "", f"browser {number}"))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = [job.state for job in servers[0].list()]
    assert sorted(states) == ["queued"] * 7 + ["running"]
    assert len({job.id for job in made}) == 8


def test_two_jobs_never_write_to_one_folder(make, tmp_path):
    jobs = make()
    run = run_folder(tmp_path / "run")
    first = jobs.submit("train", ["sleep", str(run)], str(run), "me")
    with pytest.raises(JobError, match="another job"):
        jobs.submit("train", ["sleep", str(run)], str(run), "you")
    (run / "stop").touch()
    wait_for(jobs, first, "stopped")
    assert jobs.submit("eval", ["exit", "0"], str(run), "you").output == str(run)


def test_a_training_is_asked_to_stop_cleanly_then_interrupted(make, tmp_path):
    jobs = make()
    run = run_folder(tmp_path / "run")
    clean = started(jobs, jobs.submit("train", ["sleep", str(run)], str(run), "me"))
    jobs.stop(clean.id)
    ended = wait_for(jobs, clean, "stopped", "failed")
    assert (ended.state, ended.exit_code) == ("stopped", 130)
    assert not RunDir(run).stop.exists(), "a stop file left behind would stop the resumed run"

    other = run_folder(tmp_path / "other")
    deaf = started(jobs, jobs.submit("train", ["sleep", str(tmp_path / "elsewhere")], str(other), "me"))
    jobs.stop(deaf.id)
    assert RunDir(other).stop.exists()
    assert jobs.get(deaf.id).state == "running"
    jobs.stop(deaf.id)
    ended = wait_for(jobs, deaf, "stopped")
    assert ended.exit_code == -signal.SIGINT


def test_a_stop_while_the_model_loads_is_not_lost(make, tmp_path):
    """A training takes an old stop file away when it begins; asking goes on until it listens."""
    jobs = make()
    run = tmp_path / "run"
    job = started(jobs, jobs.submit("train", ["sleep", str(run)], str(run), "me"))
    jobs.stop(job.id)
    assert not run.exists(), "a folder made here would not be new any more"
    run_folder(run)
    assert wait_for(jobs, job, "stopped").exit_code == 130


def test_other_jobs_are_terminated_and_queued_ones_never_start(make, tmp_path):
    jobs = make()
    running = started(jobs, jobs.submit("export", ["sleep", str(tmp_path)], "", "me"))
    queued = jobs.submit("export", ["exit", "0"], "", "me")
    assert jobs.stop(queued.id).state == "stopped"
    jobs.stop(running.id)
    assert wait_for(jobs, running, "stopped").exit_code == -signal.SIGTERM
    assert jobs.get(queued.id).started is None


def test_whoever_may_delete_a_run_may_stop_its_job(make, tmp_path):
    """A link followed from another site once lost a user the training started in the same browser."""
    jobs = make()
    job = jobs.submit("eval", ["sleep", str(tmp_path)], "", "me")
    make().stop(job.id)
    assert wait_for(jobs, job, "stopped").owner == "me"


def test_the_tail_is_bounded_and_without_what_a_bar_overwrote(make, tmp_path):
    jobs = make()
    job = jobs.submit("eval", ["say", "500"], "", "me")
    wait_for(jobs, job, "finished")
    lines = jobs.tail(job.id).splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("line 200", "line 499", 300)
    log = tmp_path / "jobs" / f"{job.id}.log"
    log.write_bytes("10%\r50%\r100% 完成\n".encode() + b"\xff broken\n")
    assert jobs.tail(job.id, 2) == "100% 完成\n\ufffd broken"


@pytest.mark.parametrize("id", ["", "nothing", "../../etc/passwd", "a/b", ".lock"])
def test_an_unknown_job_is_an_error(make, id):
    jobs = make()
    for ask in (jobs.get, jobs.tail, jobs.stop):
        with pytest.raises(JobError, match="no such job"):
            ask(id)


def test_a_recycled_process_id_is_not_taken_for_the_job(make, tmp_path):
    jobs = make()
    job = jobs.submit("eval", ["sleep", str(tmp_path)], "", "me")
    os.killpg(job.pid, signal.SIGKILL)
    wait_for(jobs, job, "failed")
    file = tmp_path / "jobs" / f"{job.id}.json"
    state = json.loads(file.read_text()) | {"state": "running", "pid": os.getpid(), "ended": None}
    file.write_text(json.dumps(state))
    assert jobs.get(job.id).state == "failed"


SERVER = """
import sys, time
from pathlib import Path
from glmtune.webui import jobs as module
module.COMMAND = (sys.executable, sys.argv[1])
root = Path(sys.argv[2])
jobs = module.Jobs(root / "jobs", root)
for name in ("first", "second"):
    jobs.submit("train", ["sleep", str(root / name)], str(root / name), "me")
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_server_leaves_its_training_running_and_the_next_one_finds_it(make, tmp_path):
    runs = [run_folder(tmp_path / name) for name in ("first", "second")]
    command = [sys.executable, "-c", SERVER, str(tmp_path / "command.py"), str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout.readline() == b"ready\n"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()

    jobs = make()
    second, first = jobs.list()
    assert (first.state, second.state) == ("running", "queued")
    (runs[0] / "stop").touch()
    # The new server is not the process's parent, and still learns its exit code.
    assert wait_for(jobs, first, "stopped", "failed").exit_code == 130
    assert wait_for(jobs, second, "running").owner == "me"


def test_the_queue_moves_while_no_page_asks(make, tmp_path):
    jobs = make()
    jobs.watch()
    jobs.submit("eval", ["exit", "0"], "", "me")
    last = jobs.submit("eval", ["exit", "0"], "", "me")
    file = tmp_path / "jobs" / f"{last.id}.json"
    end = time.monotonic() + 20
    while json.loads(file.read_text())["state"] != "finished":
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_server_that_ends_can_stop_what_runs_and_leaves_the_queue_to_the_next(make, tmp_path):
    server = make()
    training = server.submit("train", ["sleep", str(run_folder(tmp_path / "run"))], str(tmp_path / "run"), "me")
    waiting = server.submit("eval", ["exit", "0"], "", "me")
    started(server, training)
    server.stop_running()
    assert server.get(training.id).state == "stopped"
    assert server.get(training.id).exit_code == 130
    assert server.get(waiting.id).state == "queued"
    assert wait_for(make(), waiting, "finished")
