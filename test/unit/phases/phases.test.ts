/** One handoff, step by step, as a reader of the contract would expect it; and the words of the errors. */
import { beforeEach, describe, expect, it } from "vitest";
import {
  type Client,
  type Command,
  clientName,
  type Event,
  GRACE_MS,
  initialState,
  type PhaseConfig,
  type State,
  transition,
  waits,
} from "../../../src/phases/index.js";
import { phaseConfig, recipeFrom } from "../../../src/recipe/index.js";

const config = (changes: Partial<PhaseConfig> = {}): PhaseConfig => ({
  ...phaseConfig(recipeFrom({ engine: { model: "m", engines: 2, tensorParallel: 2 }, gpus: { count: 4 } }, "/")),
  ...changes,
});

let state: State;
let all: Command[];

/** Feeds events; gives what the node was told to do, in short. */
function feed(...events: Event[]): string[] {
  const said: string[] = [];
  for (const event of events) {
    const next = transition(state, event);
    state = next.state;
    all.push(...next.commands);
    said.push(...next.commands.flatMap(brief));
  }
  return said;
}

function brief(command: Command): string[] {
  switch (command.type) {
    case "setDeadline":
    case "clearDeadline":
    case "phaseChanged":
      return [];
    case "send": {
      const { type, ...rest } = command.message;
      const detail = [
        "stage" in rest ? rest.stage : [],
        "tags" in rest ? rest.tags : [],
        "level" in rest ? `${rest.level}` : [],
      ].flat();
      return [[clientName(command.client), type, ...detail].join(" ")];
    }
    case "welcome":
      return [`${clientName(command.client)} welcome`];
    case "measureRoom":
      return [`measure ${command.gpus.join(",")}`];
    case "end":
      return [`end ${command.reason} ${command.failure?.code ?? ""}`.trim()];
    default: {
      const { type, ...rest } = command as { type: string; engine?: number; worker?: number; rank?: number };
      const who = [
        rest.engine === undefined ? [] : `engine ${rest.engine}`,
        rest.worker === undefined ? [] : `worker ${rest.worker}`,
        rest.rank === undefined ? [] : `rank ${rest.rank}`,
      ].flat();
      return [[...who, type].join(" ")];
    }
  }
}

const ranks = [0, 1, 2, 3];
const engines = [0, 1];
const seqOf = (client: Client): number => {
  if (client.role === "rank") return state.ranks[client.index]?.seq ?? 0;
  return state.engines[client.role === "engine" ? client.index : client.engine]?.seq ?? 0;
};
const rankSeq = (rank: number): number => seqOf({ role: "rank", index: rank });
const engineSeq = (engine: number): number => seqOf({ role: "engine", index: engine });

function start(changes: Partial<PhaseConfig> = {}): void {
  state = initialState(config(changes));
  all = [];
  feed({ type: "started" });
  for (const engine of engines) {
    feed({ type: "hello", client: { role: "engine", index: engine }, gpu: null, localWorldSize: null });
    for (const worker of [0, 1]) {
      const client: Client = { role: "worker", engine, index: worker };
      feed({ type: "hello", client, gpu: 2 * engine + worker, localWorldSize: null });
    }
    feed({ type: "ready", engine, tensorParallel: 2, weightBytes: 10, cacheBytes: 20 });
  }
  for (const rank of ranks) {
    feed({ type: "hello", client: { role: "rank", index: rank }, gpu: rank, localWorldSize: 4 });
    feed({ type: "manifest", rank, signature: "s" });
  }
}

const arrive = (epoch = 1): Event[] => ranks.map((rank) => ({ type: "arrived", rank, epoch }));
const release = (rank: number, releasedBytes = 5): Event => ({
  type: "released",
  rank,
  seq: rankSeq(rank),
  releasedBytes,
});
const room = (freeBytes: number): Event[] =>
  all.flatMap((command): Event[] =>
    command.type === "measureRoom"
      ? [{ type: "room", key: command.key, gpus: command.gpus.map((gpu) => ({ gpu, freeBytes })) }]
      : [],
  );

/** All the way until every engine has its weights; each rank gave back so much for them. */
function syncAll(releasedBytes = 5): void {
  feed(...arrive());
  feed(...ranks.map((rank) => release(rank, releasedBytes)));
  feed(...room(10));
  for (const engine of engines) feed({ type: "awake", engine, seq: engineSeq(engine), tags: ["weights"] });
  for (const engine of engines) {
    for (const worker of [0, 1]) {
      feed({ type: "planned", engine, worker, seq: engineSeq(engine), sources: ranks, fallback: null });
    }
  }
  feed(...ranks.map((rank): Event => ({ type: "exported", rank, seq: rankSeq(rank) })));
  for (const engine of engines) {
    for (const worker of [0, 1]) {
      feed({ type: "synced", engine, worker, seq: engineSeq(engine), epoch: 1, compared: [] });
    }
    feed({ type: "verified", engine, failure: null });
  }
}

/** All the way until every engine is open. */
function openAll(): void {
  syncAll();
  feed(...ranks.map((rank) => release(rank)));
  feed(...room(20));
  for (const engine of engines) feed({ type: "awake", engine, seq: engineSeq(engine), tags: ["kv_cache"] });
}

beforeEach(() => start());

describe("a handoff", () => {
  it("goes step by step", () => {
    expect(feed(...arrive().slice(0, 3))).toEqual([]);
    expect(feed(...arrive().slice(3))).toEqual(ranks.map((rank) => `rank ${rank} release optimizer`));
    // Each engine goes on when the ranks on its own GPUs have given back.
    expect(feed(release(0), release(1))).toEqual(["measure 0,1"]);
    expect(feed(release(2), release(3))).toEqual(["measure 2,3"]);
    expect(feed(...room(9))).toEqual(["measure 0,1", "measure 2,3"]);
    expect(feed(...room(10).slice(2))).toEqual(["engine 0 wake weights", "engine 1 wake weights"]);
    expect(feed({ type: "awake", engine: 0, seq: engineSeq(0), tags: ["weights"] })).toEqual([
      "engine 0 worker 0 sendManifests",
      "engine 0 worker 1 sendManifests",
      "engine 0 plan",
    ]);
    feed({ type: "awake", engine: 1, seq: engineSeq(1), tags: ["weights"] });
    const planned = (engine: number, worker: number): Event => ({
      type: "planned",
      engine,
      worker,
      seq: engineSeq(engine),
      sources: ranks,
      fallback: null,
    });
    expect(feed(planned(0, 0), planned(0, 1), planned(1, 0))).toEqual([]);
    expect(feed(planned(1, 1))).toEqual(ranks.map((rank) => `rank ${rank} exportSegments`));
    const exported = (rank: number): Event => ({ type: "exported", rank, seq: rankSeq(rank) });
    expect(feed(exported(0), exported(1), exported(2))).toEqual([]);
    expect(feed(exported(3))).toEqual(
      engines.flatMap((engine) => [
        `engine ${engine} worker 0 sendSources`,
        `engine ${engine} worker 1 sendSources`,
        `engine ${engine} sync`,
      ]),
    );
    const synced = (engine: number, worker: number): Event => ({
      type: "synced",
      engine,
      worker,
      seq: engineSeq(engine),
      epoch: 1,
      compared: [],
    });
    expect(feed(synced(0, 0), synced(0, 1))).toEqual(["engine 0 verifyWeights"]);
    // Under ZeRO-3 engine 1 still reads every rank.
    expect(feed({ type: "verified", engine: 0, failure: null })).toEqual([]);
    feed(synced(1, 0), synced(1, 1));
    expect(feed({ type: "verified", engine: 1, failure: null })).toEqual([
      "epochMoved",
      ...ranks.map((rank) => `rank ${rank} release all`),
    ]);
    all = [];
    expect(feed(...ranks.map((rank) => release(rank)))).toEqual(["measure 0,1", "measure 2,3"]);
    expect(feed(...room(20))).toEqual(["engine 0 wake kv_cache", "engine 1 wake kv_cache"]);
    expect(feed({ type: "awake", engine: 0, seq: engineSeq(0), tags: ["kv_cache"] })).toEqual([
      "rank 0 opened",
      "rank 1 opened",
    ]);
    expect(state.phase).toBe("cache");
    feed({ type: "awake", engine: 1, seq: engineSeq(1), tags: ["kv_cache"] });
    expect(state.phase).toBe("generate");
    expect(state.weightEpoch).toBe(1);
  });

  it("generates when all ranks of a group have asked, and each group on its own", () => {
    openAll();
    const prompts = (rank: number, call: number, count: number): Event => ({ type: "prompts", rank, call, count });
    expect(feed(prompts(0, 0, 3))).toEqual([]);
    expect(feed(prompts(1, 0, 0))).toEqual(["engine 0 generate"]);
    const request = state.engines[0]?.request ?? -1;
    expect(feed({ type: "generated", engine: 0, request, epoch: 1 })).toEqual(["engine 0 completions"]);
    expect(feed(prompts(1, 1, 0), prompts(0, 1, 0))).toEqual(["engine 0 completions"]); // nothing to generate
    const completions = all.filter((command) => command.type === "completions");
    expect(completions).toMatchObject([
      { ranks: [0, 1], call: 0, request: 0 },
      { ranks: [0, 1], call: 1, request: null },
    ]);
  });

  it("goes back as soon as the engine beside a rank sleeps, and the room is there", () => {
    openAll();
    all = [];
    expect(feed({ type: "leave", rank: 0 })).toEqual([]);
    expect(feed({ type: "leave", rank: 1 })).toEqual(["engine 0 sleep 2"]);
    expect(feed({ type: "asleep", engine: 0, seq: engineSeq(0) })).toEqual(["measure 0", "measure 1"]);
    expect(feed(...room(10))).toEqual(["rank 0 resume", "rank 1 resume"]);
    expect(feed({ type: "resumed", rank: 0, seq: rankSeq(0) }, { type: "resumed", rank: 1, seq: rankSeq(1) })).toEqual(
      [],
    );
    expect(state.phase).toBe("generate"); // of the other group
    feed({ type: "leave", rank: 2 }, { type: "leave", rank: 3 });
    feed({ type: "asleep", engine: 1, seq: engineSeq(1) });
    feed(...room(10).slice(2));
    feed({ type: "resumed", rank: 2, seq: rankSeq(2) }, { type: "resumed", rank: 3, seq: rankSeq(3) });
    expect(state.phase).toBe("train");
    // Optimizer state still streams in: the next handoff waits for it.
    expect(feed(...arrive())).toEqual([]);
    const returned = ranks.map((rank): Event => ({ type: "returned", rank }));
    expect(feed(...returned.slice(1))).toEqual([]);
    expect(feed(...returned.slice(0, 1))).toEqual(ranks.map((rank) => `rank ${rank} release optimizer`));
  });

  it("releases only what is lacking, when the recipe says so", () => {
    start({ release: "needed" });
    all = [];
    expect(feed(...arrive())).toEqual(["measure 0,1", "measure 2,3"]);
    const free = (bytes: readonly number[]): Event[] =>
      room(0).map((event) =>
        event.type === "room"
          ? { ...event, gpus: event.gpus.map(({ gpu }) => ({ gpu, freeBytes: bytes[gpu] ?? 0 })) }
          : event,
      );
    expect(feed(...free([10, 4, 10, 12]))).toEqual(["rank 1 release optimizer", "engine 1 wake weights"]);
    expect(all.find((command) => command.type === "send" && command.message.type === "release")).toMatchObject({
      message: { wantBytes: 6 },
    });
  });

  it("names its phases for the log", () => {
    openAll();
    const node = all.filter((command) => command.type === "phaseChanged" && command.client === null);
    expect(node.map((command) => (command as { name: string }).name)).toEqual([
      ...["train", "arrive", "release", "wake", "plan", "sync", "cache", "generate"],
    ]);
  });
});

describe("an end", () => {
  const goodbye = (rank: number): Event => ({ type: "goodbye", client: { role: "rank", index: rank } });
  const gone = (rank: number): Event[] => [
    { type: "connectionLost", client: { role: "rank", index: rank }, ending: true },
    { type: "processDied", client: { role: "rank", index: rank }, exit: { code: 0, signal: null } },
  ];
  const failureOf = () => all.find((command) => command.type === "end")?.failure;

  it("in good order needs every goodbye and an exit code of 0", () => {
    feed(...ranks.map(goodbye), ...ranks.flatMap(gone));
    expect(feed({ type: "launcherExited", exit: { code: 0, signal: null } })).toEqual(["end finished"]);
    expect(feed({ type: "interrupted", signal: "SIGINT" })).toEqual([]);
    expect(waits(state)).toEqual([]);
  });

  it.each([
    ["SIGINT", 130],
    ["SIGHUP", 129],
    ["SIGTERM", 143],
  ])("by %s has exit code %i", (signal, exitCode) => {
    expect(feed({ type: "interrupted", signal })).toEqual(["end interrupted INTERRUPTED"]);
    expect(all.find((command) => command.type === "end")).toMatchObject({ exitCode });
  });

  it("waits a moment for frames that are on their way", () => {
    expect(feed({ type: "launcherExited", exit: { code: 0, signal: null } }, ...ranks.slice(1).map(goodbye))).toEqual(
      [],
    );
    expect(waits(state).find(({ key }) => key === "launcher")?.ms).toBe(GRACE_MS);
    expect(feed(goodbye(0))).toEqual(["end finished"]);
  });

  it("names who died, how and when", () => {
    openAll();
    const client: Client = { role: "worker", engine: 1, index: 0 };
    expect(feed({ type: "connectionLost", client, ending: true })).toEqual([]);
    expect(feed({ type: "processDied", client, exit: { code: null, signal: "SIGKILL" } })).toEqual([
      "end failed WORKER_DIED",
    ]);
    expect(failureOf()).toMatchObject({
      message: "worker 0 of engine 1 died in phase generate",
      found: "killed by SIGKILL",
      action: expect.stringContaining("out-of-memory"),
    });
  });

  it.each(["SIGSEGV", "SIGBUS"])("by %s in a rollout says that training state is away there", (signal) => {
    openAll();
    const client: Client = { role: "rank", index: 1 };
    feed({ type: "connectionLost", client, ending: true });
    expect(feed({ type: "processDied", client, exit: { code: null, signal } })).toEqual(["end failed RANK_DIED"]);
    expect(failureOf()).toMatchObject({
      found: `killed by ${signal}, while its training state was away for the rollout`,
      action: expect.stringMatching(/away inside of `with session.rollout\(\)`.* copy the tensors/),
    });
  });

  it("by SIGSEGV at another time, or of an engine, does not", () => {
    const crash = (client: Client): Event[] => [
      { type: "connectionLost", client, ending: true },
      { type: "processDied", client, exit: { code: null, signal: "SIGSEGV" } },
    ];
    feed(...crash({ role: "rank", index: 1 }));
    expect(failureOf()).toMatchObject({ code: "RANK_DIED", action: "Read the output of this process." });
    start();
    openAll();
    feed(...crash({ role: "engine", index: 1 }));
    expect(failureOf()).toMatchObject({ code: "ENGINE_DIED", action: "Read the output of this process." });
  });

  it("of a rank with exit code 0 is one without finish()", () => {
    const client: Client = { role: "rank", index: 1 };
    feed({ type: "connectionLost", client, ending: true });
    expect(feed({ type: "processDied", client, exit: { code: 0, signal: null } })).toEqual(["end failed RANK_LEFT"]);
    expect(failureOf()?.expected).toContain("session.finish()");
  });

  it("tells a lost connection from a death", () => {
    feed({ type: "connectionLost", client: { role: "engine", index: 0 }, ending: false });
    expect(feed({ type: "deadlinePassed", key: "gone: engine 0" })).toEqual(["end failed CONNECTION_LOST"]);
  });

  it("calls it a death when the kernel is still taking the process apart", () => {
    feed({ type: "connectionLost", client: { role: "rank", index: 1 }, ending: true });
    expect(feed({ type: "deadlinePassed", key: "gone: rank 1" })).toEqual(["end failed RANK_DIED"]);
    expect(failureOf()?.found).toBe("gone, how is not known");
  });

  it("by a deadline names who was waited for, for what, and the setting", () => {
    feed(...arrive().slice(0, 2));
    expect(feed({ type: "deadlinePassed", key: "arrive" })).toEqual(["end failed DEADLINE"]);
    expect(failureOf()).toEqual({
      code: "DEADLINE",
      message: "rank 2 and rank 3 did not arrive at the handoff within 120000 ms",
      expected: "an answer within 120000 ms (deadlines.arriveMs)",
      found: "nothing from rank 2 and rank 3",
      action:
        "Look at what rank 2 and rank 3 are doing (stopped, or waiting for another process?), or raise deadlines.arriveMs.",
    });
  });

  it("without room says which GPU lacks how much", () => {
    feed(...arrive());
    feed(release(0), release(1));
    feed(...room(7));
    expect(feed({ type: "deadlinePassed", key: "room: engine 0" })).toEqual(["end failed ROOM_NOT_AVAILABLE"]);
    expect(failureOf()).toMatchObject({
      message: "there is no room for the weights of engine 0",
      expected: "10 bytes free on GPU 0, 1 within 10000 ms",
      found: "GPU 0 has 7 bytes free, GPU 1 has 7 bytes free",
    });
    expect(all.at(-1)).toMatchObject({ type: "end", gpus: [0, 1], exitCode: 1 });
  });

  it("without room for a later return comes before the cache wakes, and says whose return", () => {
    syncAll(30);
    all = [];
    feed(...ranks.map((rank) => release(rank)));
    // The cache needs 20; the 10 bytes of the weights and 24 more are not the 35 that each rank will want again.
    expect(feed(...room(24))).toEqual(["measure 0,1", "measure 2,3"]);
    expect(feed({ type: "deadlinePassed", key: "room: engine 0" })).toEqual(["end failed ROOM_NOT_AVAILABLE"]);
    expect(failureOf()).toMatchObject({
      message: "there is no room for rank 0 to take its memory back once engine 0 sleeps again",
      expected: "25 bytes free on GPU 0, 1 within 10000 ms",
    });
    expect(all.at(-1)).toMatchObject({ type: "end", gpus: [0, 1] });
    start();
    syncAll(30);
    all = [];
    feed(...ranks.map((rank) => release(rank)));
    expect(feed(...room(25))).toEqual(["engine 0 wake kv_cache", "engine 1 wake kv_cache"]);
  });

  it("is about memory: the GPUs whose holders belong into it are told", () => {
    const failed = (client: Client, code: string): unknown => {
      start();
      feed({ type: "failed", client, failure: { code, message: "m", expected: "", found: "", action: "" } });
      return all.at(-1);
    };
    expect(failed({ role: "rank", index: 2 }, "OUT_OF_MEMORY")).toMatchObject({ gpus: [2] });
    expect(failed({ role: "engine", index: 1 }, "OUT_OF_MEMORY")).toMatchObject({ gpus: [2, 3] });
    expect(failed({ role: "worker", engine: 1, index: 1 }, "CUDA_OUT_OF_MEMORY")).toMatchObject({ gpus: [3] });
    expect(failed({ role: "worker", engine: 1, index: 1 }, "OTHER")).toMatchObject({ gpus: [] });
  });

  it("comes when trainer and engine disagree: on one token, or on average over enough of them", () => {
    const check = (tokens: number, maxDifference: number | null, meanDifference: number | null): Event => ({
      type: "logprobCheck",
      rank: 1,
      epoch: state.epoch,
      tokens,
      maxDifference,
      meanDifference,
    });
    const mismatch = ["end failed LOGPROB_MISMATCH"];
    const bounds = { checks: { ...config().checks, logprobMaxBound: 0.2, logprobMeanBound: 0.01 } };
    start(bounds);
    expect(feed(check(1, 0.21, 0.001)).slice(0, 1)).toEqual(mismatch);
    start(bounds);
    expect(feed(check(1, Number.NaN, 0.001)).slice(0, 1)).toEqual(mismatch);
    // The mean of a few tokens says little; many times a few are enough, whichever rank they come from.
    start(bounds);
    expect(feed(check(60, 0.02, 0.011), check(0, null, null), check(39, 0.02, 0.011))).toEqual([]);
    expect(feed(check(1, 0.02, 0.011)).slice(0, 1)).toEqual(mismatch);
    // What was good long ago does not hide what is wrong now.
    start(bounds);
    expect(feed(...Array.from({ length: 1000 }, () => check(50, 0.01, 0.005)))).toEqual([]);
    expect(feed(...Array.from({ length: 100 }, () => check(50, 0.02, 0.015))).slice(0, 1)).toEqual(mismatch);
  });
  it("keeps the code of a launcher that fails", () => {
    feed({ type: "launcherExited", exit: { code: 7, signal: null } });
    feed({ type: "deadlinePassed", key: "launcher" });
    expect(all.at(-1)).toMatchObject({ type: "end", exitCode: 7, failure: { code: "LAUNCHER_FAILED" } });
  });

  it("never changes the state that it was given", () => {
    const deepFreeze = (value: unknown): void => {
      if (typeof value !== "object" || value === null || Object.isFrozen(value)) return;
      Object.freeze(value);
      Object.values(value).forEach(deepFreeze);
    };
    const feedFrozen = (event: Event): void => {
      deepFreeze(state);
      feed(event);
    };
    expect(() => {
      for (const event of arrive()) feedFrozen(event);
      for (const rank of ranks) feedFrozen(release(rank));
      for (const event of room(10)) feedFrozen(event);
      for (const engine of engines) feedFrozen({ type: "awake", engine, seq: engineSeq(engine), tags: ["weights"] });
      feedFrozen({ type: "interrupted", signal: "SIGINT" });
    }).not.toThrow();
  });
});
