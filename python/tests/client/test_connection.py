"""What a client sees of its controller, and the controller of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from peer import Peer, welcome
from standin import Standin, require_build

from baton.connection import Connection
from baton.errors import BatonError
from baton.protocol.messages import (
    Arrive,
    Failed,
    Failure,
    Goodbye,
    Leave,
    Opened,
    Ping,
    Pong,
    Resume,
    Shutdown,
)


@pytest.fixture
def peer(tmp_path, monkeypatch):
    made = Peer(tmp_path)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("BATON_CONTROLLER_PID", "BATON_CONTROLLER_START"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


@pytest.fixture
def pair(peer):
    """A connected client and its peer."""
    thread = threading.Thread(target=peer.accept, args=(welcome(silence_seconds=0.4),))
    thread.start()
    connection = Connection.open("rank", 3, gpu=1, local_rank=1, world_size=8, local_world_size=8)
    thread.join()
    yield connection, peer
    connection.close()


def code_of(call) -> str:
    with pytest.raises(BatonError) as caught:
        call()
    return caught.value.code


def test_the_hello_says_who_it_is(pair):
    _, peer = pair
    hello = peer.hello
    assert (hello.role, hello.index, hello.gpu, hello.world_size, hello.engine) == ("rank", 3, 1, 8, None)
    assert (hello.pid, hello.token) == (os.getpid(), "secret")


def test_without_a_controller_the_error_says_how_to_start(monkeypatch):
    monkeypatch.delenv("BATON_SOCKET", raising=False)
    with pytest.raises(BatonError) as caught:
        Connection.open("rank", 0)
    assert caught.value.code == "NO_CONTROLLER"
    assert "baton run" in caught.value.action


def test_a_socket_that_nobody_listens_at(monkeypatch, tmp_path):
    monkeypatch.setenv("BATON_SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("BATON_TOKEN", "secret")
    assert code_of(lambda: Connection.open("rank", 0)) == "CANNOT_CONNECT"


def test_a_controller_that_turns_the_client_away(peer):
    failure = Failure(code="BAD_TOKEN", message="no", expected="a", found="b", action="c")
    thread = threading.Thread(target=peer.accept, args=(Shutdown(failure=failure),))
    thread.start()
    assert code_of(lambda: Connection.open("rank", 0)) == "BAD_TOKEN"
    thread.join()


def test_pings_are_answered_and_count_as_a_sign_of_life(pair):
    connection, peer = pair

    def alive() -> None:
        for number in range(1, 5):
            time.sleep(0.2)  # half of the silence that the client bears
            peer.send(Ping(seq=number))
        peer.send(Opened(epoch=7))

    thread = threading.Thread(target=alive)
    thread.start()
    assert connection.receive() == (Opened(epoch=7), [])
    thread.join()
    assert [peer.receive(Pong).seq for _ in range(4)] == [1, 2, 3, 4]


def test_silence_has_an_end(pair):
    connection, _ = pair
    began = time.monotonic()
    assert code_of(connection.receive) == "DEADLINE"
    assert 0.3 < time.monotonic() - began < 2


def test_a_controller_that_is_gone(pair):
    connection, peer = pair
    peer.close()
    assert code_of(connection.receive) == "CONNECTION_LOST"


def test_the_failure_that_ended_the_run_reaches_the_script(pair):
    connection, peer = pair
    peer.send(Shutdown(failure=Failure(code="RANK_DIED", message="rank 2", expected="e", found="f", action="a")))
    with pytest.raises(BatonError, match="rank 2") as caught:
        connection.receive()
    assert caught.value.to_wire()["action"] == "a"


def test_a_message_at_the_wrong_place_is_an_error_and_its_descriptors_are_closed(pair):
    connection, peer = pair
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null") as null:
        peer.send(Opened(epoch=1), (null.fileno(),))
        assert code_of(lambda: connection.expect(Resume)) == "PROTOCOL_ERROR"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_failure_is_told_once_and_then_the_connection_is_closed(pair):
    connection, peer = pair
    connection.send(Arrive(epoch=2))
    connection.fail(ValueError("no such file"), "the training script")
    connection.fail(ValueError("again"), "the training script")
    connection.close()
    assert peer.receive(Arrive).epoch == 2
    failure = peer.receive(Failed).failure
    assert failure.code == "UNEXPECTED_ERROR"
    assert "no such file" in failure.message
    assert code_of(lambda: peer.frames.receive(1)) == "CONNECTION_LOST"
    assert code_of(lambda: connection.send(Leave())) == "CONNECTION_CLOSED"


def test_whoever_does_not_take_part_says_why_without_waiting(peer):
    error = BatonError("UNSUPPORTED", "Not so.", expected="a", found="b", action="c")
    Connection.decline(error, "the training script", "rank", 1, gpu=1, local_rank=1, world_size=2, local_world_size=2)
    hello = peer.hear()
    assert (hello.role, hello.index, hello.local_rank, hello.world_size) == ("rank", 1, 1, 2)
    failure = peer.receive(Failed).failure
    assert (failure.code, failure.message) == ("UNSUPPORTED", "Not so.")
    assert code_of(lambda: peer.frames.receive(1)) == "CONNECTION_LOST"


def test_whoever_does_not_take_part_ends_without_a_controller_too(monkeypatch, tmp_path):
    monkeypatch.setenv("BATON_SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("BATON_TOKEN", "secret")
    Connection.decline(ValueError("no"), "the training script", "rank", 0)


def test_goodbye_is_said_at_the_end(pair):
    connection, peer = pair
    connection.close()
    peer.receive(Goodbye)


def test_a_forked_child_cannot_use_it_and_does_not_keep_it_open(pair):
    connection, peer = pair
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            connection.send(Leave())
            os.write(write, b"sent")
        except BatonError as error:
            os.write(write, error.code.encode())
        time.sleep(30)
        os._exit(0)
    try:
        assert os.read(read, 100) == b"FORKED_CLIENT"
        connection.close()
        peer.receive(Goodbye)
        # With the child's copy open the end of the stream would not come.
        assert code_of(lambda: peer.frames.receive(2)) == "CONNECTION_LOST"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_importing_the_client_is_light():
    code = "import sys, baton, baton.connection, baton.native, baton.faults\n" + (
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules)"
    )
    source = os.pathsep.join(path for path in sys.path if path.endswith("python/src"))
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, timeout=60, check=False)
    assert done.returncode == 0


def test_a_client_dies_with_its_controller_whatever_python_is_doing(tmp_path):
    require_build()
    code = (
        "import os, sys, time, ctypes\n"
        "from baton import native\n"
        "pid = int(sys.argv[1]); start = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[19]\n"
        "native.watchdog_start(pid, int(start)); print('ready', flush=True)\n"
        "ctypes.PyDLL(None).sleep(60)\n"  # holds the interpreter lock all the time
    )
    controller = subprocess.Popen(["sleep", "60"])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(controller.pid)],
        env=Standin(tmp_path).environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        controller.kill()
        controller.wait()
        began = time.monotonic()
        assert client.wait(5) == -9
        assert time.monotonic() - began < 1
