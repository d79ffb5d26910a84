"""Several workers: two processes on this machine that train as one, and what happens when one of them ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import forks
import numpy as np
import pytest
import small_demo
from conftest import eagerly

from src import checkpoints, devices, networks
from src.errors import InputError

LINE = ("--dataset", "demo", "--filters", "4", "--seed", "7", "--gpu-ids", "-1", "--log-interval", "1", "--sample", "False")
# Each replica would normalize by its own statistics and draw its own dropout: without both, two are one.
FROZEN = """
import sys
import main
from src import networks

networks.batch_statistics = lambda norm, x, seen=None: networks.moving_statistics(norm, x)
networks.ARCHITECTURES["cifar10"] = networks.ARCHITECTURES["cifar10"]._replace(dropouts=0)
sys.exit(main.main(mode="train"))
"""


def start(program, *arguments, fork=True, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # our own import's
    return forks.Program(
        [*program, *LINE, *arguments],
        fork,
        {**inherited, "PYTHONUNBUFFERED": "1", **small_demo.WITH_SHALLOW_NETWORKS, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_two(program, folders, *arguments, fork_chief=True):
    """Two workers, each with a --checkpoints-path of its own: the second needs no file of the first."""
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    cluster = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in free]}
    for one in free:
        one.close()
    return [
        start(
            program,
            "--checkpoints-path",
            str(folder),
            *arguments,
            fork=fork_chief or number > 0,
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}}),
        )
        for number, folder in enumerate(folders)
    ]


def wait_for(process, word):
    """Reads a process's lines up to the one with this word."""
    assert any(word in line for line in process.stdout), process.stderr.read()


def tensors(folder, step):
    prefix = folder / "demo" / f"CGAN_demo-{step}"
    return {name: value for name, value in checkpoints.read(prefix).items() if name != "record" and "Adam" not in name}


@pytest.mark.slow
def test_two_workers_train_as_one_and_only_the_chief_writes(tmp_path, cli, monkeypatch, shallow_networks):
    two, one, nowhere = tmp_path / "two", tmp_path / "one", tmp_path / "nowhere"
    arguments = ("--batch-size", "40", "--epochs", "1")  # two iterations
    chief, other = start_two(("-c", FROZEN), (two, nowhere), *arguments)
    outputs = [process.communicate(timeout=300) for process in (chief, other)]
    assert [chief.returncode, other.returncode] == [0, 0], outputs
    assert "on 2 workers with CPU" in outputs[0][0] and "test after iteration 2:" in outputs[0][0]
    assert outputs[1][0].startswith("Waiting for all") and outputs[1][0].count("\n") == 1 and not nowhere.exists()

    again = start_two(("-c", FROZEN), (two, nowhere), *arguments)
    outputs = [process.communicate(timeout=300) for process in again]
    assert [process.returncode for process in again] == [0, 0] and "This run is finished" in outputs[0][0], outputs

    with monkeypatch.context() as frozen:  # what FROZEN does, in this process
        frozen.setattr(networks, "batch_statistics", lambda norm, x, seen=None: networks.moving_statistics(norm, x))
        frozen.setitem(networks.ARCHITECTURES, "cifar10", networks.ARCHITECTURES["cifar10"]._replace(dropouts=0))
        single = cli("train.py", *LINE, *arguments, "--checkpoints-path", one)
    assert single.code == 0, single.stderr
    logs = [np.loadtxt(folder / "demo" / f"log_{split}.dat") for folder in (two, one) for split in ("train", "test")]
    np.testing.assert_allclose(logs[0], logs[2], rtol=1e-5)
    np.testing.assert_allclose(logs[1], logs[3], rtol=1e-4)
    ours, theirs = tensors(two, 2), tensors(one, 2)
    apart = np.concatenate([np.abs(ours[name] - theirs[name]).ravel() for name in theirs])
    assert apart.mean() < 1e-6 and apart.max() < 1e-4  # Adam's steps of 3e-4 magnify gradients that are all rounding

    with eagerly():
        result = cli("train.py", *LINE, *arguments[:2], "--epochs", "2", "--checkpoints-path", two)
    assert result.code == 0 and f"Going on from {two / 'demo' / 'CGAN_demo-2'}" in result.stdout, result.stderr
    assert "iteration 4/4" in result.stdout


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_others_and_the_same_commands_go_on(tmp_path):
    folders, arguments = (tmp_path, tmp_path), ("--batch-size", "2", "--epochs", "1000", "--save-interval", "1", "--seed", "0")
    # What TensorFlow shall not say of it is told to its import.
    chief, other = start_two(("train.py",), folders, *arguments, fork_chief=False)
    wait_for(chief, "iteration 2/")
    other.kill()
    _, errors = chief.communicate(timeout=300)
    assert chief.returncode == 2 and errors.count("\n") == 1 and "another worker has ended" in errors, errors
    last = checkpoints.candidates(tmp_path / "demo", "CGAN", "demo")[0]

    chief, other = start_two(("train.py",), folders, *arguments)
    wait_for(chief, f"Going on from {last}")
    for _ in range(2):  # the first line comes while the other may still be ending its first iteration, before it listens
        wait_for(chief, " iteration ")
    other.send_signal(signal.SIGTERM)  # one is told, and all stop after the same iteration, which is saved
    output, errors = chief.communicate(timeout=300)
    assert (chief.returncode, other.wait(300)) == (143, 143), errors
    last = checkpoints.candidates(tmp_path / "demo", "CGAN", "demo")[0]
    assert f"Stopped by SIGTERM after iteration {last.name.split('-')[1]}; the same command goes on" in output


def test_signals_are_heard_while_a_worker_waits_for_the_others(tmp_path):
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        first, second, missing = (one.getsockname()[1] for one in free)
    waiting = [
        start(
            ("train.py",),
            "--checkpoints-path",
            str(tmp_path),
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]}, "task": {"type": "worker", "index": number}}
            ),
        )
        for number, ports in enumerate(([first, missing], [missing, second]))
    ]
    for process, port, number in zip(waiting, (first, second), (signal.SIGTERM, signal.SIGINT)):
        wait_for(process, "Waiting for all")
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        time.sleep(1)  # TensorFlow, if it were let, would put its own handler there a moment later
        process.send_signal(number)
    assert waiting[0].wait(60) == -signal.SIGTERM and waiting[1].wait(60) == 128 + signal.SIGINT
    assert not any(process.stderr.read() for process in waiting)


SLURM = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        ({"TF_CONFIG": ""}, None),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'}, None),
        (
            {"TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}'},
            ({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 0),
        ),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        (
            {**SLURM, "SLURM_PROCID": "2", "SLURMD_NODENAME": "n2"},
            ({"worker": ["n1:20007", "n1:20008", "n2:20007"]}, "worker", 2),
        ),
    ],
)
def test_who_the_workers_are(environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = devices.cluster()
    assert found == expected or (found["cluster_spec"].as_dict(), found["task_type"], found["task_id"]) == expected


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"TF_CONFIG": "nonsense"}, "TF_CONFIG does not tell"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}}'}, "TF_CONFIG does not tell"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}'}, "index 2"),
        *(
            (
                {"TF_CONFIG": f'{{"cluster": {{"worker": ["a:1", "{address}"]}}, "task": {{"type": "worker", "index": 0}}}}'},
                f"{address} is no HOST:PORT",
            )
            for address in ("b", "b:", ":1", "b:x", "b:0", "b:-1", "b:70000")
        ),
        ({"TF_CONFIG": '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "ps", "index": 0}}'}, "jobs are"),
        (SLURM, "SLURM_PROCID not found"),
        ({**SLURM, "SLURM_PROCID": "2", "SLURMD_NODENAME": "n1"}, "takes n2 for worker 2, which is on n1"),
    ],
)
def test_workers_that_cannot_be_told(environment, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        devices.cluster()


def test_an_address_that_is_taken(cli, monkeypatch, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(
            "TF_CONFIG",
            json.dumps({"cluster": {"worker": [f"localhost:{port}", "localhost:1"]}, "task": {"type": "worker", "index": 0}}),
        )
        result = cli("train.py", *LINE, "--checkpoints-path", tmp_path)
    assert result.code == 2 and result.stderr.count("\n") == 1 and f"localhost:{port} is not free" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_does_not_train_works_alone(tiny_checkpoint, cli, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}')
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint)
    assert result.code == 0 and "Only training uses several workers" in result.stdout, result.stderr
