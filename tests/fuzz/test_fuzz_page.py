"""Mutated requests to the Turing test's page: an answer or none, no traceback, and no answer in the table but whole ones."""

import json
import socket

import pytest
from hypothesis import strategies as st
from mutation import COUNTS, mutated, try_all
from test_turing import make_trials
from test_web import Client, serving

from src.turing.trials import read_rows


def request(call, words):
    body = json.dumps(words).encode()
    return (
        f"POST /api/{call} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


CALLS = ["next", "pair", "show", "answer", "result"]
REAL = [
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: localhost:1\r\n\r\n",
    *(request(call, {"name": "anna", "trial": 1, "answer": "left", "seconds": 0.5}) for call in CALLS),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)
WORDS = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON | st.sampled_from(["anna", "ben", "=1+1", 'a,"b\n']),
        "trial": JSON | st.integers(0, 5),
        "answer": JSON | st.sampled_from(["left", "right", ""]),
        "seconds": JSON,
    },
)
ASKED = st.builds(request, st.sampled_from(CALLS), WORDS | JSON)


@pytest.mark.slow
@pytest.mark.parametrize(*COUNTS)
@pytest.mark.parametrize("inputs", [mutated(REAL), ASKED], ids=["mutated", "asked"])
def test_requests(tmp_path, capfd, inputs, examples):
    trials = make_trials(tmp_path / "trials.csv", count=4, delay=30)
    with serving(trials) as server:

        def check(contents):
            with socket.create_connection(server.server_address, timeout=5) as connection:
                try:
                    connection.sendall(contents)
                    connection.shutdown(socket.SHUT_WR)
                    reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
                except ConnectionError:  # it was refused before all of it was heard
                    reply = b""
            assert b"Traceback" not in reply and b"Error:" not in reply

        try_all(inputs, check, examples)
        assert Client(server, "zoe").ask("next") == (200, {"name": "zoe", "trial": 1})
    assert "Traceback" not in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"trials.csv"}
    if trials.rows:
        assert read_rows(tmp_path / "trials.csv") == trials.rows
