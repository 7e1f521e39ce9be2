"""The tensor-parallel workers of the small engine: `python -m baton.engines.small.worker PID FD…`,
for the engine process PID with one channel FD a worker.

Importing torch is most of a worker's start (3 s of a core and 285 MB), so one process imports it and forks the other
workers before it has a thread, a driver or a connection; then it is worker 0 itself. Each worker serves one command
at a time from its engine and answers the controller's pings between commands. The workers end with their engine,
whatever that engine died of.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

import torch

from baton.engines.model_config import ModelConfig
from baton.engines.small import memory, wire
from baton.engines.small.cache import Cache, slots_in
from baton.engines.small.channel import Channel, PeerGone
from baton.engines.small.generate import Generator
from baton.engines.small.group import Group
from baton.engines.small.held import HeldBytes
from baton.engines.small.model import CausalModel
from baton.engines.small.shard import Shard
from baton.errors import BatonError
from baton.parent import die_with
from baton.weights.manifest import TensorSpec
from baton.weights.receiver import Host, Receiver
from baton.weights.recorder import DTYPES

#: A progress message at most this often.
PROGRESS_SECONDS = 0.05


class Worker(Receiver):
    """Model, cache and weights of one rank; its public methods are the engine's commands."""

    def __init__(self, channel: Channel, setup: dict[str, Any]) -> None:
        memory.require_stand_in()
        self._channel = channel
        self.rank = int(setup["rank"])
        self.engine = int(setup["engine"])
        self.device = int(setup["device"])
        self.dtype_name = str(setup["dtype"])
        self.by_copies = setup["sync"] == "copies"
        dtype = DTYPES[self.dtype_name]
        config = ModelConfig(**setup["model"])
        self.shard = Shard.of(config, self.rank, int(setup["size"]))
        self.group = Group(self.rank, self.shard.size, setup["store"], float(setup["collective_deadline"]))
        length = int(setup["max_model_length"])
        slots = slots_in(config, self.shard, length, dtype, int(setup["max_sequences"]), setup["cache_bytes"])
        self.weights = memory.Region(self.device, "engine weights")
        self.kv_cache = memory.Region(self.device, "engine cache")
        self.model = CausalModel(
            config, self.shard, lambda shape: self.weights.tensor(shape, dtype), self.group, dtype, length
        )
        self.cache = Cache(config, self.shard, length, slots, lambda shape: self.kv_cache.tensor(shape, dtype))
        self._held = HeldBytes(self.device)
        self.generator = Generator(self.model, self.cache)
        self._saved: list[torch.Tensor] = []
        self.tensors = [TensorSpec(name, shape, self.dtype_name) for name, shape in config.checkpoint_tensors()]

    def baton_host(self) -> Host:
        cpu = torch.device("cpu")
        return Host(self.model, cpu, self.device, self.device, self.engine, self.rank, self.by_copies)

    def info(self) -> dict[str, int]:
        return {
            "pid": os.getpid(),
            # What waking takes: whole segments.
            "weight_bytes": self.weights.mapped_bytes,
            "cache_bytes": self.kv_cache.mapped_bytes,
            "slots": self.cache.slots,
            "vocabulary_size": self.model.config.vocabulary_size,
        }

    def baton_memory(self) -> dict[str, int]:
        """Bytes that this worker has mapped on its GPU."""
        return {"weights": self.weights.mapped_bytes, "kv_cache": self.kv_cache.mapped_bytes}

    def record_own(self) -> None:
        """Records `load_weights` with the tensors that the model's configuration implies."""
        self.baton_record([[spec.name, list(spec.shape), spec.dtype] for spec in self.tensors])

    def sleep(self, level: int) -> int | None:
        """Returns the bytes still held (None: unknown). Level 1 keeps a copy of the weights in host memory."""
        self.baton_settle()
        if level == 1 and self.weights.awake:
            self._saved = [parameter.detach().clone() for parameter in self.model.parameters()]
        for region in (self.kv_cache, self.weights):
            if region.awake:
                region.discard()
        return self._held()

    def wake(self, tags: list[str]) -> None:
        if "weights" in tags and not self.weights.awake:
            self.weights.wake()
            for parameter, saved in zip(self.model.parameters(), self._saved, strict=False):
                parameter.data.copy_(saved)
            self._saved = []
        if "kv_cache" in tags and not self.kv_cache.awake:
            self.kv_cache.wake()
            self.cache.forget()

    def generate(self, packed: dict[str, Any]) -> dict[str, Any] | None:
        """Rank 0 answers with the samples and tells of progress; the others compute along."""
        requests, sampling = wire.unpack_requests(packed)
        latest = 0.0

        def progress(finished: int, tokens: int) -> None:
            nonlocal latest
            now = time.monotonic()
            if self.rank == 0 and now - latest >= PROGRESS_SECONDS:
                latest = now
                self._channel.send({"finished": finished, "tokens": tokens})

        samples = self.generator.generate(requests, sampling, progress)
        return wire.pack_samples(samples) if self.rank == 0 else None


def serve(channel: Channel) -> None:
    """Builds the worker from the first message and serves commands until the engine closes the channel."""
    setup = channel.receive()
    worker = _answer(channel, lambda: Worker(channel, setup), lambda made: made.info())
    if worker is None:
        return
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    connected = False
    while True:
        command = channel.take()
        if command is None:
            if not connected and (fd := worker.baton_fileno()) is not None:
                poller.register(fd, select.POLLIN)
                connected = True
            for fd, _ in poller.poll():
                if fd == channel.fileno():
                    channel.fill()
                    continue
                try:
                    worker.baton_poll()
                except BatonError:
                    # The run is over, or the controller gone. The engine knows too, and ends this worker.
                    poller.unregister(fd)
            continue
        method, arguments = getattr(worker, command["method"]), command["arguments"]
        if (
            _answer(channel, lambda method=method, arguments=arguments: (method(*arguments),), lambda made: made[0])
            is None
        ):
            return


def _answer(channel: Channel, work: Any, answer: Any) -> Any:
    """Runs `work` and sends what `answer` makes of it. None: it failed, the failure was sent."""
    try:
        made = work()
        channel.send({"answer": answer(made)})
    except PeerGone:
        raise
    except Exception as error:
        if channel.closed():
            raise PeerGone from None  # the engine has ended, and other workers too: that is all there is to this
        if not isinstance(error, BatonError):
            traceback.print_exc()
        channel.send({"failure": BatonError.from_exception(error, "The engine's worker").to_wire()})
        return None
    return made


def fork_workers(descriptors: list[int]) -> int:
    """Makes a process for each descriptor but the first; returns the one that is this process's own."""
    # Nobody waits for the children here; the kernel shall not keep them as zombies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page with an object on it
    first = os.getpid()
    for mine in descriptors[1:]:
        if os.fork() == 0:
            die_with(first)
            for other in descriptors:
                if other != mine:
                    os.close(other)
            return mine
    for other in descriptors[1:]:
        os.close(other)
    return descriptors[0]


def main() -> int:
    # Ctrl-C reaches every process of the terminal; the controller decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, *descriptors = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    torch.set_num_threads(1)
    channel = Channel(socket.socket(fileno=fork_workers(descriptors)))
    try:
        serve(channel)
    except PeerGone:
        return 0
    return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # gloo's threads may abort in an ordinary exit, and there is nothing left to tidy up.
    os._exit(code)
