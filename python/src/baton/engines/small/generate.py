"""Batched generation: prefill into cache slots, decode all of them at once, refill slots as sequences end.

Every worker runs this same loop on the same requests and makes the same choices, so the workers need no word from
each other besides the model's own collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from baton.engines.adapter import Request, Sample, Sampling
from baton.engines.small import sampler
from baton.engines.small.cache import Cache
from baton.engines.small.model import Batch, CausalModel

#: Padded prompt tokens of one prefill; bounds its activations.
PREFILL_TOKENS = 16384
#: Waiting sequences are let in when this share of the slots is free: many small prefills are slower than few.
REFILL_SHARE = 8

Ints = npt.NDArray[np.int64]


@dataclass
class _Sequences:
    """All sequences of a call, one row each, ordered by request, then by sample."""

    request: Ints
    key: npt.NDArray[np.uint64]
    prompt_length: Ints
    limit: Ints  # tokens that may be generated
    slot: Ints
    generated: Ints
    tokens: npt.NDArray[np.uint32]
    logprobs: npt.NDArray[np.float32]
    stopped: npt.NDArray[np.bool_]


class Generator:
    """Generates with one model and one cache."""

    def __init__(self, model: CausalModel, cache: Cache) -> None:
        self.model = model
        self.cache = cache

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_progress: Callable[[int, int], None]
    ) -> list[list[Sample]]:
        """Completions by request, then by sample. `on_progress(finished samples, generated tokens)` each step."""
        rows = self._rows(requests, sampling)
        total = len(rows.request)
        free = list(range(self.cache.slots))
        waiting, active = 0, np.empty(0, dtype=np.int64)
        while waiting < total or active.size:
            room = len(free) >= max(1, self.cache.slots // REFILL_SHARE) or not active.size
            if waiting < total and room:
                entering = np.arange(waiting, min(total, waiting + len(free)))
                waiting += entering.size
                rows.slot[entering] = [free.pop() for _ in entering]
                self._prefill(requests, sampling, rows, entering)
                active = np.concatenate((active, entering))
            else:
                self._decode(sampling, rows, active)
            done = rows.stopped[active] | (rows.generated[active] >= rows.limit[active])
            free.extend(rows.slot[active[done]].tolist())
            active = active[~done]
            on_progress(waiting - active.size, int(rows.generated.sum()))
        return self._samples(requests, rows)

    def _rows(self, requests: Sequence[Request], sampling: Sampling) -> _Sequences:
        samples = np.array([request.samples for request in requests], dtype=np.int64)
        request = np.repeat(np.arange(len(requests)), samples)
        number = np.concatenate([np.arange(n) for n in samples]) if len(requests) else request
        streams = np.array([r.stream for r in requests], dtype=np.uint64)[request]
        lengths = np.array([len(r.prompt) for r in requests], dtype=np.int64)[request]
        longest = sampling.max_tokens
        return _Sequences(
            request=request,
            key=sampler.stream_keys(sampling.seed, streams, number),
            prompt_length=lengths,
            limit=np.minimum(longest, self.cache.length - lengths),
            slot=np.zeros(request.size, dtype=np.int64),
            generated=np.zeros(request.size, dtype=np.int64),
            tokens=np.zeros((request.size, longest), dtype=np.uint32),
            logprobs=np.zeros((request.size, longest), dtype=np.float32),
            stopped=np.zeros(request.size, dtype=np.bool_),
        )

    def _prefill(self, requests: Sequence[Request], sampling: Sampling, rows: _Sequences, entering: Ints) -> None:
        """The prompts of `entering`, each computed once however many samples of it enter."""
        self.cache.prepare(rows.slot[entering].tolist())
        prompts = np.unique(rows.request[entering])
        lengths = np.array([len(requests[p].prompt) for p in prompts])
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < order.size:
            # In order of length, so that little is padded.
            count = 1
            while start + count < order.size:
                if (count + 1) * lengths[order[start + count]] > PREFILL_TOKENS:
                    break
                count += 1
            chosen = order[start : start + count]
            self._prefill_some(requests, sampling, rows, entering, prompts[chosen], lengths[chosen])
            start += count

    def _prefill_some(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        rows: _Sequences,
        entering: Ints,
        prompts: Ints,
        lengths: Ints,
    ) -> None:
        width = int(lengths.max())
        tokens = np.zeros((prompts.size, width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : lengths[row]] = requests[prompt].prompt
        positions = torch.arange(width).expand(prompts.size, width)
        batch = Batch(torch.from_numpy(tokens), positions, slots=None, filled=[])
        logits = self.model(batch, self.cache, torch.from_numpy(lengths - 1))
        place = {int(prompt): row for row, prompt in enumerate(prompts)}
        mine = entering[np.isin(rows.request[entering], prompts)]
        source = torch.tensor([place[int(r)] for r in rows.request[mine]])
        slots = torch.from_numpy(rows.slot[mine])
        assert batch.filled is not None
        for layer, (keys, values) in enumerate(batch.filled):
            self.cache.keys[layer, slots, :, :width] = keys[source]
            self.cache.values[layer, slots, :, :width] = values[source]
        self._choose(sampling, rows, mine, logits[source])

    def _decode(self, sampling: Sampling, rows: _Sequences, active: Ints) -> None:
        made = rows.generated[active]
        # The token made last is the one that the cache does not know yet.
        positions = rows.prompt_length[active] + made - 1
        tokens = rows.tokens[active, made - 1].astype(np.int64)
        batch = Batch(
            torch.from_numpy(tokens).unsqueeze(1),
            torch.from_numpy(positions).unsqueeze(1),
            slots=torch.from_numpy(rows.slot[active]),
            reach=int(positions.max()) + 1,
        )
        logits = self.model(batch, self.cache, torch.zeros(active.size, dtype=torch.int64))
        self._choose(sampling, rows, active, logits)

    def _choose(self, sampling: Sampling, rows: _Sequences, which: Ints, logits: torch.Tensor) -> None:
        made = rows.generated[which]
        numbers = sampler.uniforms(rows.key[which], made)
        tokens, logprobs = sampler.choose(logits, sampling, numbers)
        rows.tokens[which, made] = tokens.numpy()
        rows.logprobs[which, made] = logprobs.numpy()
        rows.generated[which] += 1
        rows.stopped[which] = np.isin(tokens.numpy(), sampling.stop_token_ids)

    def _samples(self, requests: Sequence[Request], rows: _Sequences) -> list[list[Sample]]:
        found: list[list[Sample]] = [[] for _ in requests]
        for row, request in enumerate(rows.request):
            made = int(rows.generated[row])
            finish = "stop" if rows.stopped[row] else "length"
            found[request].append(Sample(rows.tokens[row, :made].copy(), rows.logprobs[row, :made].copy(), finish))
        return found
