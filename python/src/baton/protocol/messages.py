"""The messages between the controller and its clients.

Generated from src/protocol/messages by `npm run protocol`; not to be edited by hand.

Field names are snake_case here and camelCase on the wire. Integer arrays travel as little-endian binary: see
`baton.protocol.arrays`. Decoding checks types and ranges; encoding does not, the controller checks what it gets.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=9007199254740991)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=9007199254740991)]
Integer = Annotated[int, msgspec.Meta(ge=-9007199254740991, le=9007199254740991)]

WakeTag = Literal["weights", "kv_cache"]

ReleaseStage = Literal["optimizer", "all"]

PROTOCOL_VERSION = 1


class Sampling(msgspec.Struct, kw_only=True, rename="camel"):
    """Message `Sampling`."""

    n: Positive
    temperature: NonNegative
    #: Only the so many likeliest tokens; 0: all of them.
    top_k: Annotated[int, msgspec.Meta(ge=0, le=2147483647)]
    #: Only the fewest tokens that together have this probability.
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)]
    #: Only tokens at least this share as likely as the likeliest one.
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)]
    max_tokens: Positive
    stop_token_ids: list[Count]
    #: null: drawn by the controller. Sample k of prompt p uses a stream of its own derived from it.
    seed: Count | None


class Failure(msgspec.Struct, kw_only=True, rename="camel"):
    """What went wrong, in the words that the user will read."""

    code: str
    message: str
    expected: str
    found: str
    action: str


class Hello(msgspec.Struct, kw_only=True, rename="camel", tag="hello", tag_field="type"):
    """First frame of a connection. Fields that do not apply to a role are null."""

    protocol: Integer
    token: str
    role: Literal["rank", "engine", "worker"]
    pid: Positive
    #: Rank (global), engine index, or tensor-parallel rank within the engine.
    index: Count
    #: Rank: LOCAL_RANK, which is also its GPU.
    local_rank: Count | None
    world_size: Count | None
    local_world_size: Count | None
    #: Worker: its engine.
    engine: Count | None
    #: Rank and worker: the GPU it computes on.
    gpu: Count | None
    version: str


class Manifest(msgspec.Struct, kw_only=True, rename="camel", tag="manifest", tag_field="type"):
    """Rank, after `attach` (and again whenever addresses or names changed): what lies where."""

    zero_stage: Annotated[int, msgspec.Meta(ge=0, le=3)]
    dtype: Literal["float32", "bfloat16", "float16"]
    segment_bytes: Count
    #: Tensors of the policy by Hugging Face name, in the same order on every rank.
    names: list[str]
    dtypes: list[str]
    shapes: list[list[Count]]
    #: Pieces that this rank holds: tensor index (u32), first element, elements, byte offset in the pool
    #: (u64).
    piece_tensor: bytes
    piece_start: bytes
    piece_elements: bytes
    piece_offset: bytes
    #: By the stage's formula: parameters + masters + moments of this rank.
    state_bytes: Count
    #: Host memory that a pause of this rank needs at most.
    arena_bytes: Count


class Arrive(msgspec.Struct, kw_only=True, rename="camel", tag="arrive", tag_field="type"):
    """Rank: at the handoff, after optimizer step `epoch`."""

    epoch: Count


class Released(msgspec.Struct, kw_only=True, rename="camel", tag="released", tag_field="type"):
    """Message `released`."""

    seq: Positive
    released_bytes: Count
    saved_bytes: Count
    clean_bytes: Count
    dead_bytes: Count
    kept_bytes: Count
    #: Training memory on the GPU that could not be put into the pool, by owner.
    outside_bytes: Count
    seconds: NonNegative
    simulated_seconds: NonNegative | None


class Exported(msgspec.Struct, kw_only=True, rename="camel", tag="exported", tag_field="type"):
    """Rank: the segments asked for, one descriptor each. Several frames when there are many; `last` ends them."""

    seq: Positive
    #: u64 segment numbers, in the order of the descriptors.
    segments: bytes
    #: u64 checksum per tensor of the manifest over this rank's pieces; empty unless `last`, or when not asked
    #: for.
    checksums: bytes
    #: The same of what float32 elements become when they are rounded to bfloat16; 0 for other tensors, and
    #: empty when there is none of float32.
    rounded_checksums: bytes
    last: bool


class Prompts(msgspec.Struct, kw_only=True, rename="camel", tag="prompts", tag_field="type"):
    """Rank: its prompts. Collective over the ranks of a tensor-parallel group; an empty list is fine."""

    #: Counts the calls of this rollout from 0; all ranks of a group must agree.
    call: Count
    #: u32 token ids of all prompts, one after another.
    tokens: bytes
    #: u32 length of each prompt.
    lengths: bytes
    sampling: Sampling


class Leave(msgspec.Struct, kw_only=True, rename="camel", tag="leave", tag_field="type"):
    """Rank: wants to train again."""


class Resumed(msgspec.Struct, kw_only=True, rename="camel", tag="resumed", tag_field="type"):
    """Rank: parameters are back; `pendingBytes` still stream in."""

    seq: Positive
    copied_bytes: Count
    pending_bytes: Count
    seconds: NonNegative
    simulated_seconds: NonNegative | None


class Returned(msgspec.Struct, kw_only=True, rename="camel", tag="returned", tag_field="type"):
    """Rank: everything is back."""

    copied_bytes: Count
    #: How long the training had to wait for it.
    waited_seconds: NonNegative
    seconds: NonNegative


class LogprobCheck(msgspec.Struct, kw_only=True, rename="camel", tag="logprobCheck", tag_field="type"):
    """Rank: trainer against engine on the same tokens, after a sync. null: no token to compare."""

    epoch: Count
    tokens: Count
    max_difference: float | None
    mean_difference: float | None


class Metrics(msgspec.Struct, kw_only=True, rename="camel", tag="metrics", tag_field="type"):
    """Rank: figures of a training step for the progress line and the report (reward, loss, heldOut, …)."""

    step: Count
    #: null: the figure is not finite.
    values: dict[str, float | None]


class Ready(msgspec.Struct, kw_only=True, rename="camel", tag="ready", tag_field="type"):
    """Engine: loaded, its workers connected, plan recorded; asleep."""

    tensor_parallel: Positive
    dtype: Literal["float32", "bfloat16", "float16"]
    #: For each worker.
    weight_bytes: Count
    cache_bytes: Count
    max_model_length: Positive
    vocabulary_size: Positive


class Awake(msgspec.Struct, kw_only=True, rename="camel", tag="awake", tag_field="type"):
    """Message `awake`."""

    seq: Positive
    tags: list[WakeTag]
    seconds: NonNegative


class Asleep(msgspec.Struct, kw_only=True, rename="camel", tag="asleep", tag_field="type"):
    """Message `asleep`."""

    seq: Positive
    #: What the engine says it still holds on each of its GPUs, by tensor-parallel rank.
    left_bytes: list[Count | None]
    seconds: NonNegative


class Progress(msgspec.Struct, kw_only=True, rename="camel", tag="progress", tag_field="type"):
    """Engine: it is making progress on a request (the deadline while generating runs from the last one)."""

    request: Count
    finished_samples: Count
    generated_tokens: Count


class Generated(msgspec.Struct, kw_only=True, rename="camel", tag="generated", tag_field="type"):
    """Engine: the answer to a `generate`, all samples, ordered by prompt, then by sample."""

    request: Count
    #: The epoch of the weights that made them.
    epoch: Count
    #: u32 token ids, one completion after another; u32 lengths; f32 logprob of each token.
    tokens: bytes
    lengths: bytes
    logprobs: bytes
    #: u8 per completion: 0 stop token, 1 length.
    finish: bytes
    seconds: NonNegative


class PlannedSource(msgspec.Struct, kw_only=True, rename="camel"):
    """Message `PlannedSource`."""

    rank: Count
    segments: bytes
    copy_bytes: Count


class Planned(msgspec.Struct, kw_only=True, rename="camel", tag="planned", tag_field="type"):
    """Worker: the copy plan from the manifests."""

    seq: Positive
    #: null, or why the engine's own load_weights will be used.
    fallback: str | None
    runs: Count
    copy_bytes: Count
    #: Ranks and, for each, the u64 segment numbers that this worker maps at a sync and the bytes that it
    #: copies.
    sources: list[PlannedSource]
    #: u64 per tensor: elements of it that this worker holds; u64 per tensor: checksum over their indices
    #: only.
    covered_elements: bytes
    coverage: bytes
    #: u32 numbers of the tensors that are float32 on the ranks and that this worker rounds to bfloat16.
    rounded: bytes


class Synced(msgspec.Struct, kw_only=True, rename="camel", tag="synced", tag_field="type"):
    """Message `synced`."""

    seq: Positive
    epoch: Count
    copied_bytes: Count
    runs: Count
    map_seconds: NonNegative
    copy_seconds: NonNegative
    unmap_seconds: NonNegative
    simulated_seconds: NonNegative | None
    #: Set when this sync was compared with the engine's own load_weights: the parameters that differ.
    compared: list[str] | None


class Summed(msgspec.Struct, kw_only=True, rename="camel", tag="summed", tag_field="type"):
    """Worker: what its weights add up to, where `sources` asked for it. Comes after `synced`, while the cache
    may wake.
    """

    #: Of the sync.
    seq: Positive
    #: u64 per tensor of the manifest, over the elements that this worker holds, read back from its own
    #: weights.
    checksums: bytes
    #: From `synced` until the sums were there.
    seconds: NonNegative


class Failed(msgspec.Struct, kw_only=True, rename="camel", tag="failed", tag_field="type"):
    """Message `failed`."""

    failure: Failure


class Goodbye(msgspec.Struct, kw_only=True, rename="camel", tag="goodbye", tag_field="type"):
    """Message `goodbye`."""


class Pong(msgspec.Struct, kw_only=True, rename="camel", tag="pong", tag_field="type"):
    """Message `pong`."""

    seq: Positive


class Welcome(msgspec.Struct, kw_only=True, rename="camel", tag="welcome", tag_field="type"):
    """Message `welcome`."""

    protocol: Integer
    run: str
    simulated: bool
    #: Longest silence of the controller, in a wait of the client, before the client gives up.
    silence_seconds: NonNegative
    engines: Count
    tensor_parallel: Count
    #: Longest prompt plus completion that the engines can take, in tokens.
    max_model_length: Positive
    #: For ranks: on how many sequences to compare logprobs after a sync; 0: on none.
    logprob_sequences: Count
    #: Verify frozen segments on the first so many resumes.
    verify_frozen: Count


class Arena(msgspec.Struct, kw_only=True, rename="camel", tag="arena", tag_field="type"):
    """To a rank, right after its welcome: an empty memfd as one descriptor, and how large it may grow; and what
    the weights of an engine take, all its workers together, null where there is no engine.
    """

    arena_bytes: Count
    weight_bytes: Count | None


class Release(msgspec.Struct, kw_only=True, rename="camel", tag="release", tag_field="type"):
    """To a rank: stage "optimizer" keeps the parameters; wantBytes null: everything that the stage allows."""

    seq: Positive
    stage: ReleaseStage
    want_bytes: Count | None


class ExportSegments(msgspec.Struct, kw_only=True, rename="camel", tag="exportSegments", tag_field="type"):
    """To a rank: export these segments (u64; there may be none) and, when asked for, checksum your pieces."""

    seq: Positive
    segments: bytes
    checksums: bool


class Opened(msgspec.Struct, kw_only=True, rename="camel", tag="opened", tag_field="type"):
    """To a rank: the engines are awake with the weights of `epoch`; generate may be called."""

    epoch: Count


class Completions(msgspec.Struct, kw_only=True, rename="camel", tag="completions", tag_field="type"):
    """To a rank: its own completions in its own order; fields as in `generated`."""

    call: Count
    epoch: Count
    tokens: bytes
    lengths: bytes
    logprobs: bytes
    finish: bytes


class Resume(msgspec.Struct, kw_only=True, rename="camel", tag="resume", tag_field="type"):
    """To a rank: the engine on its GPU is asleep and the room is there."""

    seq: Positive


class Wake(msgspec.Struct, kw_only=True, rename="camel", tag="wake", tag_field="type"):
    """Message `wake`."""

    seq: Positive
    tags: list[WakeTag]


class Sleep(msgspec.Struct, kw_only=True, rename="camel", tag="sleep", tag_field="type"):
    """Message `sleep`."""

    seq: Positive
    level: Annotated[int, msgspec.Meta(ge=1, le=2)]


class Plan(msgspec.Struct, kw_only=True, rename="camel", tag="plan", tag_field="type"):
    """To an engine: make every worker take its `manifests` (plan) or `sources` (sync) frames from its own
    connection.
    """

    seq: Positive


class Sync(msgspec.Struct, kw_only=True, rename="camel", tag="sync", tag_field="type"):
    """Message `sync`."""

    seq: Positive
    epoch: Count
    compare: bool


class RankManifest(msgspec.Struct, kw_only=True, rename="camel", tag="rankManifest", tag_field="type"):
    """To a worker: the manifest of one rank; `last` ends the list. Answered by `planned`."""

    seq: Positive
    rank: Count
    gpu: Count
    last: bool
    manifest: Manifest


class Sources(msgspec.Struct, kw_only=True, rename="camel", tag="sources", tag_field="type"):
    """To a worker: segments of one rank's pool, one descriptor each; `last` ends the list. Answered by `synced`."""

    seq: Positive
    epoch: Count
    rank: Count
    segment_bytes: Count
    segments: bytes
    compare: bool
    #: Whether `summed` must follow `synced`.
    checksums: bool
    last: bool


class Generate(msgspec.Struct, kw_only=True, rename="camel", tag="generate", tag_field="type"):
    """Message `generate`."""

    request: Count
    epoch: Count
    tokens: bytes
    lengths: bytes
    sampling: Sampling
    #: u32 per prompt: how many samples (identical prompts of a group are sent once, with their samples
    #: added).
    samples: bytes
    #: u32 per prompt: number that seeds its samples, whatever engine or batch it is in.
    streams: bytes


class Ping(msgspec.Struct, kw_only=True, rename="camel", tag="ping", tag_field="type"):
    """Message `ping`."""

    seq: Positive


class Shutdown(msgspec.Struct, kw_only=True, rename="camel", tag="shutdown", tag_field="type"):
    """The run is over; failure null: in order."""

    failure: Failure | None


FromClient = (
    Hello
    | Manifest
    | Arrive
    | Released
    | Exported
    | Prompts
    | Leave
    | Resumed
    | Returned
    | LogprobCheck
    | Metrics
    | Ready
    | Awake
    | Asleep
    | Progress
    | Generated
    | Planned
    | Synced
    | Summed
    | Failed
    | Goodbye
    | Pong
)


FromController = (
    Welcome
    | Arena
    | Release
    | ExportSegments
    | Opened
    | Completions
    | Resume
    | Wake
    | Sleep
    | Plan
    | Sync
    | RankManifest
    | Sources
    | Generate
    | Ping
    | Shutdown
)
