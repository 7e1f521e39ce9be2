"""What Baton adds to vLLM's worker class (`worker_extension_cls`): the weight sync, sleeping and waking.

vLLM imports this module in each worker before it makes the model; importing it puts Baton's pools into the place of
vLLM's sleep allocator there. All calls come through `baton_call`, whose answers are MessagePack values: an exception
of a worker in a process of its own would reach the engine as text only.
"""

from __future__ import annotations

import math
import os
import select
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from baton.engines import model_config
from baton.engines.adapter import EngineConfig
from baton.engines.process import parse_config
from baton.engines.vllm import memory
from baton.engines.vllm.after_loading import require_as_loaded
from baton.errors import BatonError
from baton.weights.receiver import Host, Receiver
from baton.weights.recorder import DTYPES

#: The engine's own configuration, which every worker process inherits.
_CONFIG: EngineConfig = parse_config(os.environ["BATON_ENGINE"])[1]


def _weight_bytes(config: EngineConfig) -> int | None:
    """About what one worker's weights need; None when config.json is of a kind that is not known here."""
    try:
        tensors = list(model_config.read_sizes(config.model).checkpoint_tensors())
    except BatonError:
        return None
    return sum(math.prod(shape) for _, shape in tensors) * DTYPES[config.dtype].itemsize // config.tensor_parallel


_POOLS = memory.install({"weights": _weight_bytes(_CONFIG), "kv_cache": _CONFIG.cache_bytes})


class _Own:
    """State of this extension in one worker."""

    def __init__(self) -> None:
        #: Held by whoever reads the controller's frames.
        self.reading = threading.RLock()
        self.divisor = 1.0
        self.wrapped = False


class WorkerExtension(Receiver):
    """vLLM refuses a name that its worker has too, hence the prefixes."""

    @property
    def _baton_own(self) -> _Own:
        state = self.__dict__.get("_baton_own_state")
        if state is None:
            state = self.__dict__["_baton_own_state"] = _Own()
        return state

    def baton_call(self, method: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """Calls `method` of this class: {"answer": …} or {"failure": the fields of a BatonError}."""
        try:
            if not method.startswith("baton_"):
                raise ValueError(f"{method} is not a method of Baton's")
            with self._baton_own.reading:
                return {"answer": getattr(self, method)(*arguments)}
        except Exception as error:
            if not isinstance(error, BatonError):
                traceback.print_exc()
            return {"failure": BatonError.from_exception(error, f"{method} in an engine's worker").to_wire()}

    def baton_host(self) -> Host:
        worker: Any = self
        device: torch.device = worker.device
        ordinal = int(device.index)
        rank = int(worker.rank)
        by_copies = _CONFIG.sync == "copies"
        return Host(self._baton_model(), device, ordinal, _CONFIG.devices[rank], _CONFIG.index, rank, by_copies)

    def baton_info(self) -> dict[str, int]:
        """Once, when vLLM has started: what this worker holds, in bytes."""
        worker: Any = self
        return {
            "pid": os.getpid(),
            "weight_bytes": _POOLS.mapped_bytes("weights"),
            "cache_bytes": _POOLS.mapped_bytes("kv_cache"),
            "vocabulary_size": int(worker.model_config.get_vocab_size()),
        }

    def baton_memory(self) -> dict[str, int]:
        """Bytes that this worker has mapped in its pools, and those that it saves while asleep."""
        return {
            "weights": _POOLS.mapped_bytes("weights"),
            "kv_cache": _POOLS.mapped_bytes("kv_cache"),
            "kept": _POOLS.kept_bytes("weights") + _POOLS.kept_bytes("kv_cache"),
        }

    def baton_connect(self) -> int:
        """As the receiver's; and pings are answered from now on whatever vLLM's loop is doing."""
        pid = super().baton_connect()
        threading.Thread(target=self._baton_listen, name="baton-worker", daemon=True).start()
        return pid

    def baton_record_own(self) -> str | None:
        """Records `load_weights` with the tensors that config.json implies, where that is known. Else the manifests
        of the ranks will say which they are. Raises BatonError WEIGHTS_REARRANGED."""
        require_as_loaded(self._baton_model())
        try:
            tensors = model_config.read_sizes(_CONFIG.model).checkpoint_tensors()
        except BatonError as error:
            return error.message
        obstacle = self.baton_record([[name, list(shape), _CONFIG.dtype] for name, shape in tensors])
        torch.cuda.empty_cache()
        return obstacle

    def baton_plan(self, seq: int) -> None:
        super().baton_plan(seq)
        torch.cuda.empty_cache()

    def baton_free_scratch(self) -> None:
        """The largest tensor's; the ranks may want the room."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def baton_sleep(self, level: int) -> int | None:
        """Level 2. None: NVML's figure for a process is stale while memory is unmapped, so what is left on the GPU is
        not known by process."""
        if level != 2:
            raise BatonError(
                "SLEEP_LEVEL",
                f"vLLM engines of Baton's do not sleep at level {level}.",
                expected="level 2: the trainer has the weights",
                found=str(level),
                action="Please report this.",
            )
        worker: Any = self
        self.baton_settle()
        torch.cuda.synchronize()
        _POOLS.discard("kv_cache", memory.tensors_in(worker.model_runner.kv_caches))
        _POOLS.discard("weights", self._baton_model().parameters())
        torch.cuda.empty_cache()
        return None

    def baton_wake(self, tags: Sequence[str]) -> None:
        worker: Any = self
        for tag in tags:
            _POOLS.wake(tag)
        if "kv_cache" in tags:
            after = getattr(worker.model_runner, "post_kv_cache_wake_up", None)
            if after is not None:
                after()
        # Not for the whole device: the sums of the weights may still be on their way there.
        torch.cuda.current_stream().synchronize()

    def baton_divisor(self, divisor: float) -> None:
        """All logits are divided by this from now on, in float32."""
        own = self._baton_own
        own.divisor = divisor
        if own.wrapped:
            return
        own.wrapped = True
        model = self._baton_model()
        compute = model.compute_logits

        def compute_logits(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            # None on workers that do not sample.
            return logits if logits is None or own.divisor == 1.0 else logits.float() / own.divisor

        model.compute_logits = compute_logits

    def _baton_model(self) -> Any:
        worker: Any = self
        return worker.model_runner.get_model()

    def _baton_listen(self) -> None:
        fd = self.baton_fileno()
        if fd is None:
            return
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        try:
            while True:
                poller.poll()
                with self._baton_own.reading:
                    if poller.poll(0):
                        self.baton_poll()
        except (BatonError, OSError):
            # The run is over, or the controller gone. The engine knows too, and ends this worker.
            return
