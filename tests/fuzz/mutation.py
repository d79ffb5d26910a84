"""How the fuzz tests make their inputs, and how many they try."""

import signal
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# A test tries a hundred inputs, or with `make torture` ten thousand: @pytest.mark.parametrize(*COUNTS).
COUNTS = "examples", [100, pytest.param(10_000, marks=[pytest.mark.torture, pytest.mark.slow])]


def mutated(originals):
    """Strategy: one of `originals` (bytes) with up to 8 bytes changed, put in or taken out, and perhaps cut off anywhere."""
    change = st.tuples(
        st.sampled_from(["set", "flip", "insert", "delete", "copy"]), st.floats(0, 1), st.binary(max_size=8), st.integers(0, 7)
    )

    def build(original, changes, cut):
        data = bytearray(original)
        for kind, where, bytes_, bit in changes:
            at = int(where * max(0, len(data) - 1))
            if kind == "set":
                data[at : at + len(bytes_)] = bytes_
            elif kind == "flip" and data:
                data[at] ^= 1 << bit
            elif kind == "insert":
                data[at:at] = bytes_
            elif kind == "delete":
                del data[at : at + len(bytes_)]
            else:
                data[at:at] = data[:100]
        return bytes(data if cut is None else data[: int(cut * len(data))])

    return st.builds(build, st.sampled_from(originals), st.lists(change, max_size=8), st.none() | st.floats(0, 1))


def try_all(strategy, check, examples):
    """check(input) for so many inputs, the same ones every time; none may take over 5 seconds."""

    def hung(*_):
        raise AssertionError("no answer in 20 seconds")

    before = signal.signal(signal.SIGALRM, hung)
    count = [0]

    def counted(value):
        count[0] += 1
        signal.alarm(20)
        try:
            check(value)
        finally:
            signal.alarm(0)

    try:
        settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=timedelta(seconds=5),
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(counted))()
    finally:
        signal.signal(signal.SIGALRM, before)
    print(f"{count[0]} inputs tried")
    assert count[0] >= 0.9 * examples
