"""Frames and their descriptors over a real pair of sockets."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import from_client, from_controller

from baton.errors import BatonError
from baton.protocol import messages as m
from baton.protocol.frames import (
    MAX_DESCRIPTORS,
    MAX_PAYLOAD_BYTES,
    ConnectionClosed,
    FrameSocket,
    encode,
    pack_header,
    unpack_header,
)


@contextmanager
def pair() -> Generator[tuple[FrameSocket[Any], FrameSocket[Any]]]:
    """A client and its controller."""
    left, right = socket.socketpair()
    client, controller = FrameSocket(left, m.FromController), FrameSocket(right, m.FromClient)
    try:
        yield client, controller
    finally:
        client.close()
        controller.close()


@contextmanager
def raw_pair() -> Generator[tuple[FrameSocket[Any], socket.socket]]:
    """A client and the other end as it is."""
    left, right = socket.socketpair()
    client = FrameSocket(left, m.FromController)
    try:
        yield client, right
    finally:
        client.close()
        right.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=200, deadline=None)
@given(message=from_client)
def test_messages_of_a_client_come_out_as_they_went_in(message: Any) -> None:
    with pair() as (client, controller):
        client.send(message)
        assert controller.receive(5.0) == (message, [])


@settings(max_examples=200, deadline=None)
@given(message=from_controller)
def test_messages_of_the_controller_come_out_as_they_went_in(message: Any) -> None:
    with pair() as (client, controller):
        controller.send(message)
        assert client.receive(5.0) == (message, [])


@settings(max_examples=100, deadline=None)
@given(
    frames=st.lists(st.tuples(from_controller, st.integers(0, 3)), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 200), max_size=30),
)
def test_frames_survive_any_cutting_into_pieces(frames: list[tuple[Any, int]], cuts: list[int]) -> None:
    """Descriptors are sent with the first byte of their frame; the rest of the bytes may come in any pieces."""
    before = open_files()
    with raw_pair() as (client, other):
        numbers = [[os.memfd_create(f"f{i}.{k}") for k in range(count)] for i, (_, count) in enumerate(frames)]

        def feed() -> None:
            sizes = iter(cuts)
            for (message, count), own in zip(frames, numbers, strict=True):
                payload = encode(message)
                data = pack_header(len(payload), count) + payload
                size = next(sizes, len(data))
                socket.send_fds(other, [data[:size]], own)
                at = size
                while at < len(data):
                    size = next(sizes, len(data))
                    other.sendall(data[at : at + size])
                    at += size

        sender = threading.Thread(target=feed)
        sender.start()
        for (message, count), own in zip(frames, numbers, strict=True):
            received, descriptors = client.receive(10.0)
            assert received == message
            assert len(descriptors) == count
            for mine, theirs in zip(descriptors, own, strict=True):
                assert os.fstat(mine).st_ino == os.fstat(theirs).st_ino
                os.close(mine)
        sender.join()
        for number in [number for own in numbers for number in own]:
            os.close(number)
    assert open_files() == before


def test_descriptors_arrive_close_on_exec_and_stay_the_senders() -> None:
    with pair() as (client, controller), open("/dev/null") as file:
        for _ in range(3):
            controller.send(m.Arena(arena_bytes=1, weight_bytes=None), [file.fileno()])
            _, [number] = client.receive(5.0)
            assert fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.close(number)


def test_as_many_descriptors_as_linux_allows_and_no_more() -> None:
    with pair() as (client, controller), open("/dev/null") as file:
        controller.send(m.Arena(arena_bytes=1, weight_bytes=None), [file.fileno()] * MAX_DESCRIPTORS)
        _, numbers = client.receive(5.0)
        assert len(numbers) == MAX_DESCRIPTORS
        for number in numbers:
            os.close(number)
        with pytest.raises(BatonError, match="header"):
            controller.send(m.Arena(arena_bytes=1, weight_bytes=None), [file.fileno()] * (MAX_DESCRIPTORS + 1))


def test_large_frames_cross_and_leave_no_large_buffer() -> None:
    with pair() as (client, controller):
        message = m.Completions(call=0, epoch=1, tokens=os.urandom(30 << 20), lengths=b"", logprobs=b"", finish=b"")
        sender = threading.Thread(target=controller.send, args=(message,))
        sender.start()
        received, _ = client.receive(30.0)
        sender.join()
        assert received == message
        assert len(client._buffer) <= 1 << 20


def test_frames_that_came_together_are_seen_before_the_socket_is_asked() -> None:
    with pair() as (client, server):
        for seq in (1, 2):
            client.send(m.Pong(seq=seq), (), 5.0)
        assert server.receive(5.0)[0] == m.Pong(seq=1)
        assert server.buffered
        assert not select.select([server], [], [], 0)[0]
        assert server.receive(5.0)[0] == m.Pong(seq=2)
        assert not server.buffered


def test_a_deadline_passes_and_the_frame_can_still_be_received() -> None:
    with raw_pair() as (client, other):
        payload = encode(m.Ping(seq=9))
        data = pack_header(len(payload), 0) + payload
        other.sendall(data[:11])
        began = time.monotonic()
        with pytest.raises(BatonError, match=r"longer than 0\.05 s") as caught:
            client.receive(0.05)
        assert caught.value.code == "DEADLINE"
        assert 0.045 <= time.monotonic() - began < 2
        other.sendall(data[11:])
        assert client.receive(5.0) == (m.Ping(seq=9), [])


@pytest.mark.parametrize(("sent", "pause", "deadline"), [(7, 0.3, 0.5), (300, 0.02, 0.3)])
def test_a_trickle_of_bytes_does_not_extend_the_deadline(sent: int, pause: float, deadline: float) -> None:
    """Neither within the header nor behind it."""
    with raw_pair() as (client, other):
        payload = encode(m.Completions(call=0, epoch=1, tokens=bytes(400), lengths=b"", logprobs=b"", finish=b""))
        data = pack_header(len(payload), 0) + payload
        stop = threading.Event()

        def trickle() -> None:
            for byte in data[:sent]:
                other.sendall(bytes([byte]))
                if stop.wait(pause):
                    return

        feeder = threading.Thread(target=trickle)
        feeder.start()
        began = time.monotonic()
        with pytest.raises(BatonError) as caught:
            client.receive(deadline)
        stop.set()
        feeder.join()
        assert caught.value.code == "DEADLINE"
        assert time.monotonic() - began < 1.5


def test_signals_do_not_extend_the_deadline() -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with raw_pair() as (client, _):
            began = time.monotonic()
            with pytest.raises(BatonError) as caught:
                client.receive(0.2)
            assert caught.value.code == "DEADLINE"
            assert 0.19 <= time.monotonic() - began < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_what_does_not_fit_is_sent_when_the_other_end_reads() -> None:
    """Small frames too, which are otherwise sent by one call."""
    with pair() as (client, controller):
        count = 5_000
        sender = threading.Thread(target=lambda: [client.send(m.Pong(seq=seq)) for seq in range(1, count + 1)])
        sender.start()
        sender.join(0.2)
        assert sender.is_alive()  # it waits, since nobody reads
        assert [controller.receive(10.0)[0].seq for _ in range(count)] == list(range(1, count + 1))
        sender.join()


def test_a_closed_socket_waits_for_no_other_file_of_its_number() -> None:
    with pair() as (client, _):
        number = client.fileno()
        client.close()
        read, write = os.pipe()  # takes the number
        try:
            assert number in (read, write)
            with pytest.raises(ConnectionClosed):
                client.receive(5.0)
        finally:
            os.close(read)
            os.close(write)


def test_sending_to_somebody_who_does_not_read_has_a_deadline() -> None:
    with pair() as (client, _):
        message = m.Prompts(
            call=0,
            tokens=bytes(8 << 20),
            lengths=b"",
            sampling=m.Sampling(
                n=1, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=1, stop_token_ids=[], seed=None
            ),
        )
        with pytest.raises(BatonError) as caught:
            client.send(message, deadline=0.1)
        assert caught.value.code == "DEADLINE"


def test_the_end_of_a_connection_is_an_error_of_its_own() -> None:
    with pair() as (client, controller):
        controller.send(m.Ping(seq=1))
        controller.close()
        assert client.receive(5.0)[0] == m.Ping(seq=1)
        with pytest.raises(ConnectionClosed) as caught:
            client.receive(5.0)
        assert caught.value.code == "CONNECTION_LOST"
        with pytest.raises(ConnectionClosed):
            client.send(m.Goodbye())


def test_the_end_in_the_middle_of_a_frame_says_so() -> None:
    with raw_pair() as (client, other):
        other.sendall(pack_header(10, 0) + b"abc")
        other.close()
        with pytest.raises(ConnectionClosed, match="middle of a frame"):
            client.receive(5.0)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (struct.pack("<IBBH", 1, 2, 0, 0), "version"),
        (struct.pack("<IBBH", MAX_PAYLOAD_BYTES + 1, 1, 0, 0), "header"),
        (struct.pack("<IBBH", 1, 1, 254, 0), "header"),
        (struct.pack("<IBBH", 1, 1, 0, 7), "header"),
    ],
)
def test_a_header_that_is_not_ours_is_refused(header: bytes, says: str) -> None:
    with raw_pair() as (client, other):
        other.sendall(header)
        with pytest.raises(BatonError, match=says) as caught:
            client.receive(5.0)
        assert caught.value.code == "PROTOCOL_ERROR"


def test_the_header_is_little_endian() -> None:
    assert list(pack_header(0x01020304, 5)) == [4, 3, 2, 1, 1, 5, 0, 0]
    assert unpack_header(pack_header(0x01020304, 5)) == (0x01020304, 5)


@pytest.mark.parametrize(("said", "sent"), [(1, 0), (0, 1), (2, 1), (1, 2)])
def test_miscounted_descriptors_are_fatal(said: int, sent: int) -> None:
    before = open_files()
    with raw_pair() as (client, other), open("/dev/null") as file:
        payload = encode(m.Arena(arena_bytes=1, weight_bytes=None))
        data = pack_header(len(payload), said) + payload
        if sent:
            socket.send_fds(other, [data], [file.fileno()] * sent)
        else:
            other.sendall(data)
        with pytest.raises(BatonError, match="descriptors") as caught:
            client.receive(5.0)
        assert caught.value.code == "PROTOCOL_ERROR"
    assert open_files() == before


def test_descriptors_lost_by_truncation_are_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.protocol.frames._ANCILLARY_BYTES", socket.CMSG_SPACE(4))
    before = open_files()
    with raw_pair() as (client, other), open("/dev/null") as file:
        payload = encode(m.Arena(arena_bytes=1, weight_bytes=None))
        socket.send_fds(other, [pack_header(len(payload), 5) + payload], [file.fileno()] * 5)
        with pytest.raises(BatonError, match="lost on the way"):
            client.receive(5.0)
    assert open_files() == before


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\xc1", "without a readable type"),
        (b"\x81\xa4type\xa4ping", r'"ping".*'),
        (b"\x82\xa4type\xa4ping\xa3seq\x00", r'"ping"'),
        (b"\x82\xa4type\xa4ping\xa3seq\xcf\x00\x20\x00\x00\x00\x00\x00\x01", r'"ping"'),
        (b"\x82\xa4type\xa4pong\xa3seq\x01", r'"pong"'),
    ],
)
def test_a_payload_that_is_not_valid_is_refused(payload: bytes, says: str) -> None:
    with raw_pair() as (client, other):
        other.sendall(pack_header(len(payload), 0) + payload)
        with pytest.raises(BatonError, match=says) as caught:
            client.receive(5.0)
        assert caught.value.code == "PROTOCOL_ERROR"


def test_a_field_that_is_wrong_is_named() -> None:
    with raw_pair() as (client, other):
        payload = b"\x84\xa4type\xa7release\xa3seq\x01\xa5stage\xa3all\xa9wantBytes\xa1x"
        other.sendall(pack_header(len(payload), 0) + payload)
        with pytest.raises(BatonError) as caught:
            client.receive(5.0)
        assert "wantBytes" in caught.value.found


def test_a_socket_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BatonError) as caught:
        FrameSocket.connect(str(tmp_path / "none"), 1.0)
    assert caught.value.code == "CANNOT_CONNECT"


def test_connect_speaks_to_a_listener(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        client = FrameSocket.connect(path, 1.0)
        controller = FrameSocket(listener.accept()[0], m.FromClient)
        client.send(m.Goodbye())
        assert controller.receive(5.0) == (m.Goodbye(), [])
        client.close()
        controller.close()
