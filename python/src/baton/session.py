"""A training rank's side of the handoff.

    session = baton.attach(engine)
    with session.rollout() as rollout:
        completions = rollout.generate(prompt_token_ids, Sampling(max_tokens=64))
    session.log(step=1, reward=0.5)
    session.finish()

Everything here is collective over the ranks of the node: each rank enters and leaves the same rollouts and calls
`generate` equally often in each, if need be with no prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from baton import joining
from baton.connection import Connection
from baton.errors import BatonError
from baton.protocol.messages import Metrics
from baton.protocol.messages import Returned as ReturnedMessage
from baton.rollout import Rollout
from baton.training.current import current
from baton.training.manifest import Weights
from baton.training.memory import TrainingMemory
from baton.training.reports import Returned


def attach(engine: Any, frozen: Sequence[Any] = (), *, memory: TrainingMemory | None = None) -> Session:
    """Joins this rank to the run that `baton run` has started.

    `engine` is what `deepspeed.initialize` returned (or `accelerator.prepare`). `frozen` are modules or engines that
    are used and never trained, such as a reference model; their memory is released too, and saved only once.
    Raises BatonError NO_TRAINING_MEMORY, NO_CONTROLLER, UNSUPPORTED_DEEPSPEED, CANNOT_MOVE_IN, UNSUPPORTED_WEIGHTS.
    """
    memory = memory or current()
    if memory is None:
        raise BatonError(
            "NO_TRAINING_MEMORY",
            "The engine was not built inside Baton's training memory.",
            expected="with baton.training_memory(): engine, *_ = deepspeed.initialize(...)",
            found="no training memory in this process",
            action="Wrap the construction of the engine, then attach it.",
        )
    if not hasattr(engine, "zero_optimization_stage") and hasattr(engine, "engine"):
        engine = engine.engine  # accelerate's wrapper
    connection = joining.join(memory.device)
    memory.take_arena()
    session = Session(connection, memory)
    try:
        memory.attach(engine, frozen)
        memory.pool.verify_frozen(connection.welcome.verify_frozen)
        session.announce()
    except BaseException as error:
        connection.fail(error, "attaching the engine")
        raise
    return session


class Session:
    """This rank's part in a run. Made by `attach`."""

    def __init__(self, connection: Connection, memory: TrainingMemory) -> None:
        self._connection = connection
        self._memory = memory
        self._weights: Weights | None = None
        self._rollout: Rollout | None = None
        memory.on_return = self._send_returned
        joining.attached()

    @property
    def weight_epoch(self) -> int:
        """How many optimizer steps the weights have behind them."""
        return int(self._memory.engine.global_steps)

    @property
    def closed(self) -> bool:
        """Whether this rank's part in the run has ended."""
        return self._connection.closed

    @property
    def max_model_length(self) -> int:
        """The longest prompt plus completion that the engines can take, in tokens."""
        return self._connection.welcome.max_model_length

    @property
    def memory(self) -> TrainingMemory:
        return self._memory

    def rollout(self) -> Rollout:
        """Hands the GPUs over to the engines inside the `with` block. Between optimizer steps only.

        An exception inside of the block ends the run: the other ranks could not go on without this one.
        """
        if self._rollout is not None and self._rollout.open:
            raise BatonError(
                "ROLLOUT_OPEN",
                "A rollout was started inside of a rollout.",
                expected="one rollout at a time",
                found="two",
                action="Leave the first `with session.rollout()` block before the next.",
            )
        self._rollout = Rollout(self._connection, self._memory, self.announce)
        return self._rollout

    def reference(self) -> AbstractContextManager[None]:
        """The `frozen` models may be used inside of this block; then they leave the GPU until the next rollout ends.

        Without it they stay on the GPU while the policy trains.
        """
        return self._memory.reference()

    def wait(self) -> None:
        """Waits until all of the training state is back. Needed only before reading optimizer state by hand."""
        self._memory.wait()

    def log(self, step: int, **values: float) -> None:
        """Figures of a training step (reward, loss, …) for the progress line and the report."""
        self._connection.send(Metrics(step=step, values={name: float(value) for name, value in values.items()}))

    def finish(self) -> None:
        """Ends this rank's part in good order. The training state is back afterwards. Collective.

        A script that ends without it, by sys.exit() too, ends the run with RANK_LEFT.

        The ranks end together: one that closes its process group while another is still in a collective with it would
        bring that one down, after all the work is done.
        """
        self._memory.wait()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        # Its process group must not outlive the script's own: gloo's threads may abort a process that ends with one.
        self._memory.peers = None
        self._connection.close()

    def announce(self) -> Weights:
        """Sends the manifest when it has changed. Before a handoff."""
        weights = Weights.of(self._memory)
        if weights != self._weights:
            self._connection.send(weights.to_wire(self._memory))
            self._weights = weights
        return weights

    def _send_returned(self, returned: Returned) -> None:
        self._connection.send(
            ReturnedMessage(
                copied_bytes=returned.copied_bytes,
                waited_seconds=returned.waited_seconds,
                seconds=returned.seconds,
            )
        )
