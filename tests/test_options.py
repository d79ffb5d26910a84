"""The command lines: the original's options and defaults, and what a wrong one answers."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from src.data import DATASETS
from src.options import MODES, OPTIONS, parse

ROOT = Path(__file__).parent.parent


def parsed(line, mode="train"):
    return parse(shlex.split(line), mode, DATASETS)


def test_the_originals_defaults():
    options = vars(parsed(""))
    expected = dict(
        name="CGAN",
        dataset="places365",
        dataset_path=Path("dataset/places365"),
        checkpoints_path=Path("checkpoints/places365"),
        batch_size=16,
        color_space="lab",
        epochs=30,
        lr=3e-4,
        lr_decay_rate=0.1,
        lr_decay_steps=5e5,
        beta1=0,
        l1_weight=100,
        augment=True,
        label_smoothing=False,
        acc_thresh=2.0,
        kernel_size=4,
        save=True,
        save_interval=1000,
        sample=True,
        sample_size=8,
        sample_interval=1000,
        validate=True,
        validate_interval=0,
        log=True,
        log_interval=10,
        visualize=False,
        visualize_window=100,
        gpu_ids=[0],
    )
    assert {name: options[name] for name in expected} == expected
    turing = parsed("", "turing")
    assert (turing.test_size, turing.test_delay) == (100, 0)


@pytest.mark.parametrize(
    "line, expected",
    [
        (
            "--seed 100 --dataset places365 --dataset-path ./dataset/places365 --checkpoints-path ./checkpoints "
            "--batch-size 16 --epochs 10 --lr 3e-4 --label-smoothing 1",
            dict(
                seed=100,
                dataset_path=Path("dataset/places365"),
                checkpoints_path=Path("checkpoints/places365"),
                batch_size=16,
                epochs=10,
                lr=3e-4,
                label_smoothing=True,
            ),
        ),
        (
            "--seed 100 --dataset cifar10 --dataset-path ./dataset/cifar10 --checkpoints-path ./checkpoints --batch-size 128 "
            "--epochs 200 --lr 3e-4 --lr-decay-steps 1e4 --augment True",
            dict(dataset="cifar10", checkpoints_path=Path("checkpoints/cifar10"), epochs=200, lr_decay_steps=1e4, augment=True),
        ),
        (
            "--save-interval 1e4 --gpu-ids 0,1,2 --validate no --log 0 --sample YES",
            dict(save_interval=10_000, gpu_ids=[0, 1, 2], validate=False, log=False, sample=True),
        ),
        ("--gpu-ids -1 --dataset-path dataset/ --dataset demo", dict(gpu_ids=[], dataset_path=Path("dataset/demo"))),
    ],
)
def test_command_lines_as_typed(line, expected):
    options = vars(parsed(line))
    assert {name: options[name] for name in expected} == expected


def test_files_whose_names_begin_like_negative_numbers():
    options = parsed("--test-input -1.jpg a.jpg -.5.jpg --test-output -2", "colorize")
    assert options.test_input == [Path("-1.jpg"), Path("a.jpg"), Path("-.5.jpg")] and options.test_output == Path("-2")


@pytest.mark.parametrize("mode", MODES)
def test_the_originals_color_space_can_be_told_to_every_mode(mode):
    more = {"colorize": " --test-input a --test-output b", "export": " --output c"}.get(mode, "")
    assert parsed(f"--color-space rgb{more}", mode).color_space == "rgb"


@pytest.mark.parametrize("file", ["CGAN_demo-3.index", "CGAN_demo.index", "pretrained.index"])
def test_a_folder_of_checkpoints_itself(tmp_path, file):
    line = f"--dataset demo --checkpoints-path {tmp_path}"
    assert parsed(line, "evaluate").checkpoints_path == tmp_path / "demo"
    (tmp_path / file).touch()
    assert parsed(line, "evaluate").checkpoints_path == tmp_path
    assert parsed(line, "train").checkpoints_path == tmp_path / "demo"


def test_a_seed_is_drawn():
    drawn = {parsed("").seed for _ in range(5)}
    assert len(drawn) > 1 and 0 not in drawn
    assert parsed("").seed_drawn and not parsed("--seed 5").seed_drawn


@pytest.mark.parametrize(
    "line, words",
    [
        ("--batch-size 0", ["--batch-size", "'0'", "at least 1"]),
        ("--batch-size 1.5", ["--batch-size", "whole number"]),
        ("--lr -3e-4", ["--lr", "'-3e-4'", "above 0"]),
        ("--lr nan", ["--lr", "above 0"]),
        ("--epochs inf", ["--epochs", "whole number"]),
        ("--dataset imagenet", ["--dataset", "imagenet", "cifar10", "places365", "demo"]),
        ("--color-space hsv", ["--color-space", "hsv", "lab", "rgb"]),
        ("--augment maybe", ["--augment", "maybe", "True", "False"]),
        ("--gpu-ids 0,0", ["--gpu-ids", "0,0", "-1"]),
        ("--gpu-ids one", ["--gpu-ids", "one"]),
        ("--dataset cifar10 --sample-size 10001", ["--sample-size", "10001", "10000", "cifar10"]),
        ("--name a/b", ["--name", "a/b"]),
        ("--epoch 3", ["--epoch", "unknown", "--epochs?"]),
        ("--test-delay 2", ["--test-delay", "belongs to --mode turing"]),
        ("--beta1 1", ["--beta1", "0.9999"]),
    ],
)
def test_a_wrong_option_is_one_message(line, words, cli):
    result = cli("train.py", *shlex.split(line))
    assert result.code == 2 and not result.stdout
    assert result.stderr.startswith("train.py: error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def test_modes_by_name_and_number():
    for words, mode in (
        ([], "train"),
        (["--mode", "0"], "train"),
        (["--mode", "evaluate"], "evaluate"),
        (["--mode=1"], "evaluate"),
        (["--mode", "2"], "turing"),
    ):
        assert parse(words, None, DATASETS).mode == mode
    with pytest.raises(SystemExit) as stop:
        parse(["--mode", "paint"], None, DATASETS)
    assert stop.value.code == 2


@pytest.mark.parametrize("script", ["main.py", "train.py", "test-eval.py", "test-turing.py", "colorize.py"])
def test_help_needs_no_tensorflow(script):
    code = (
        f"import runpy, sys; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "finally: sys.exit(3 if 'tensorflow' in sys.modules or 'keras' in sys.modules else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--batch-size" in result.stdout


def test_every_option_is_used_somewhere():
    """An option that is parsed and ignored lies to its user."""
    rooms = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name != "options.py")
    from src.training import SETTINGS  # only here, since the rest of this file needs no TensorFlow

    names = {name.replace("-", "_") for name, *_ in OPTIONS} - set(SETTINGS)
    assert not [name for name in names if f"options.{name}" not in rooms and f'"{name}"' not in rooms]


def test_an_unknown_option_suggests_the_nearest(cli):
    result = cli("train.py", "--batchsize", "3")
    assert result.code == 2 and "did you mean --batch-size?" in result.stderr and result.stderr.count("\n") == 1


def test_without_the_packages_one_line_says_what_to_type():
    result = subprocess.run([sys.executable, "-S", ROOT / "train.py"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "pip install -r requirements.txt" in result.stderr and result.stderr.count("\n") == 1
