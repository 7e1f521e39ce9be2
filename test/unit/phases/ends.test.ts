/** How a run ends, and the words of its errors. */
import { beforeEach, describe, expect, it } from "vitest";
import { type Client, type Event, GRACE_MS, waits } from "../../../src/phases/index.js";
import {
  all,
  arrive,
  config,
  engineSeq,
  engines,
  feed,
  forget,
  openAll,
  ranks,
  release,
  room,
  start,
  state,
  syncAll,
} from "./small-node.js";

beforeEach(() => start());

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
    forget();
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
    forget();
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
    expect(failureOf()?.found).toBe("0.21, mean of too few tokens; trainer in bfloat16, engine in bfloat16");
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

  it("comes at once when a trainer in 16 bits cannot agree with engines in float32 as closely as asked", () => {
    const strict = { ...config().checks, needsFloat32: true };
    const end = (engineDtype: string, dtype: string, checks = strict) => {
      start({ engineDtype, checks }, dtype);
      return failureOf()?.code;
    };
    expect(end("float32", "bfloat16")).toBe("DTYPE_MISMATCH");
    expect(failureOf()?.action).toContain("engine.dtype to bfloat16");
    expect(end("float32", "float32")).toBe(undefined);
    expect(end("bfloat16", "float32")).toBe(undefined);
    expect(end("bfloat16", "bfloat16")).toBe(undefined);
    expect(end("float32", "bfloat16", config().checks)).toBe(undefined);
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
