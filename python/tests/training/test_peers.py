"""Under ZeRO-3 each rank gathers what its peers on other nodes hold, so that the ranks of a node have everything."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from baton.errors import BatonError
from baton.training.adapters import Weight
from baton.training.merging import MergedWeights
from baton.training.nodes import Nodes, PeerGroup, whereabouts
from baton.training.peers import PeerPartitions

RANKS = 4
JOB_TIMEOUT = timedelta(seconds=90)
#: One element, fewer than ranks, nothing that four divides, and larger than a bucket.
SIZES = [1, 3, 1000, 4097, 6]
BUCKET_BYTES = 1024
NODES = {"in order": [[0, 1], [2, 3]], "in turns": [[0, 2], [1, 3]], "four": [[0], [1], [2], [3]]}


class Merged(MergedWeights):
    """In place of merged adapters: one weight is another than what the rank holds."""

    def __init__(self, parameter: Any, values: torch.Tensor) -> None:
        self._parameter, self._values = parameter, values

    def view(self, parameter: Any) -> torch.Tensor | None:
        return self._values if parameter is self._parameter else None


def whole_weights(step):
    generator = torch.Generator().manual_seed(step)
    dtypes = [torch.bfloat16, torch.float32]
    return [torch.randn(size, generator=generator).to(dtypes[n % 2]) for n, size in enumerate(SIZES)]


def partition(whole, rank, holder=None):
    """As DeepSpeed partitions: equal shares, the last ones padded."""
    share = -(-whole.numel() // RANKS)
    padded = torch.zeros(share * RANKS, dtype=whole.dtype)
    padded[: whole.numel()] = whole
    held = padded[rank * share : (rank + 1) * share].clone()
    if holder is not None:
        holder.ds_tensor.copy_(held)
        return holder
    setattr(held, "ds_numel", share)  # noqa: B010
    return SimpleNamespace(
        ds_tensor=held, ds_numel=whole.numel(), ds_process_group=dist.group.WORLD, dtype=whole.dtype, data=held
    )


def holdings(weights, peers, rank, merged_part):
    """Everything that this rank can show an engine: (weight, start, values)."""
    shown = []
    for number, weight in enumerate(weights):
        parameter = weight.parameter
        share = parameter.ds_tensor.numel()
        count = max(0, min(share, parameter.ds_numel - rank * share))
        own = merged_part if number == 1 else parameter.ds_tensor
        shown.append((number, rank * share, own[:count].float().tolist()))
        for piece in peers.pieces(parameter):
            for buffer in peers.buffers:
                offset = piece.address - buffer.data_ptr()
                if 0 <= offset < buffer.nbytes and buffer.dtype is parameter.dtype:
                    first = offset // buffer.element_size()
                    found = buffer.view(-1)[first : first + piece.elements]
                    shown.append((number, piece.start, found.float().tolist()))
    return shown


def check(name, rank, results):
    nodes = NODES[name]
    node = next(number for number, some in enumerate(nodes) if rank in some)
    group = PeerGroup.of(Nodes(nodes, node, nodes[node].index(rank)))
    whole = whole_weights(0)
    assert group is not None
    weights = [Weight(str(number), partition(one, rank)) for number, one in enumerate(whole)]
    merged_part = partition(whole[1] * 2, rank).ds_tensor[: max(0, min(1, SIZES[1] - rank))]
    peers = PeerPartitions(weights, Merged(weights[1].parameter, merged_part), group, BUCKET_BYTES)
    for step in range(2):
        whole = whole_weights(step)
        for weight, one in zip(weights, whole, strict=True):
            partition(one, rank, weight.parameter)
        whole[1] = whole_weights(0)[1] * 2
        peers.gather()
        everything: list[Any] = [None] * RANKS
        dist.all_gather_object(everything, holdings(weights, peers, rank, merged_part))
        found = [torch.full((size,), torch.nan) for size in SIZES]
        for other in nodes[node]:
            for number, start, values in everything[other]:
                part = found[number][start : start + len(values)]
                results.append((f"{name}: once", bool(part.isnan().all())))
                part.copy_(torch.tensor(values))
        results.extend(
            (f"{name}: all of {number} in step {step}", torch.equal(a, b.float()))
            for number, (a, b) in enumerate(zip(found, whole, strict=True))
        )
    results.append((f"{name}: as long as the job", group.deadline_seconds == JOB_TIMEOUT.total_seconds()))
    sums = peers.summed(np.array([2**63 + rank, rank], dtype=np.uint64))
    total = sum(group.ranks)
    wrapped = (len(group.ranks) * 2**63 + total) % 2**64
    results.append((f"{name}: sums {sums}", sums.tolist() == [wrapped, total]))


def check_silence(rank, results):
    """Rank 3 does not come. Its peer says so within its own deadline; the others are with each other."""
    group = PeerGroup.of(Nodes([[0, 1], [2, 3]], rank // 2, rank % 2))
    assert group is not None
    weights = [Weight("0", partition(torch.ones(1000), rank))]
    peers = PeerPartitions(weights, None, replace(group, deadline_seconds=0.3), BUCKET_BYTES)
    peers.gather()
    if rank != 3:
        begin = time.monotonic()
        try:
            peers.gather()
            results.append(("all were there", rank != 1))
        except BatonError as error:
            found = (error.code, error.found)
            results.append(
                (f"{found}", rank == 1 and found == ("PEERS_SILENT", "nothing from rank 3 of the job (RANK)"))
            )
        results.append(("within its deadline", time.monotonic() - begin < 5))


def rank_main(rank, port, answers):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BATON_SOCKET": f"/node{rank // 2}"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=JOB_TIMEOUT)
    results = []
    for name in NODES:
        check(name, rank, results)
    found = Nodes.find()
    results.append((f"found {found}", found == Nodes([[0, 1], [2, 3]], rank // 2, rank % 2)))
    try:
        PeerGroup.of(Nodes([[0, 1, 2], [3]], 0, 0))
        results.append(("uneven nodes", False))
    except BatonError as error:
        results.append(("uneven nodes", (error.code, error.found) == ("NODES_UNEVEN", "3 on node 0, 1 on node 1")))
    results.append(("one node", PeerGroup.of(Nodes([[0, 1, 2, 3]], 0, rank)) is None))
    check_silence(rank, results)
    answers.put((rank, results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers():
    context = processes.get_context("spawn")
    queue = context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [context.Process(target=rank_main, args=(rank, port, queue)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    found = [queue.get(timeout=120) for _ in ranks]
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * RANKS
    return found


def test_the_ranks_of_every_node_have_every_element_once_as_its_holder_has_it(answers):
    assert len(answers) == RANKS
    for rank, results in answers:
        assert len(results) > 50
        assert [what for what, holds in results if not holds] == [], rank


def test_two_controllers_on_one_machine_are_two_nodes(monkeypatch):
    monkeypatch.setenv("BATON_SOCKET", "/a")
    first = whereabouts()
    assert first == whereabouts()
    monkeypatch.setenv("BATON_SOCKET", "/b")
    assert first != whereabouts()
