/** One handoff, step by step, as a reader of the contract would expect it. */
import { beforeEach, describe, expect, it } from "vitest";
import type { Event } from "../../../src/phases/index.js";
import {
  all,
  arrive,
  engineSeq,
  engines,
  feed,
  forget,
  openAll,
  rankSeq,
  ranks,
  release,
  room,
  start,
  state,
  summed,
  synced,
} from "./small-node.js";

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
    // Under ZeRO-3 engine 1 still reads every rank.
    expect(feed(synced(0, 0), synced(0, 1))).toEqual([]);
    expect(feed(synced(1, 0), synced(1, 1))).toEqual(ranks.map((rank) => `rank ${rank} release all`));
    forget();
    // Meanwhile the workers sum up what they have.
    expect(feed(summed(0, 0), summed(0, 1))).toEqual(["engine 0 verifyWeights"]);
    expect(feed(...ranks.map((rank) => release(rank)))).toEqual(["measure 0,1", "measure 2,3"]);
    expect(feed(...room(20))).toEqual(["engine 0 wake kv_cache", "engine 1 wake kv_cache"]);
    expect(feed({ type: "verified", engine: 0, failure: null })).toEqual([]);
    expect(feed({ type: "awake", engine: 0, seq: engineSeq(0), tags: ["kv_cache"] })).toEqual([
      "rank 0 opened",
      "rank 1 opened",
    ]);
    expect(state.phase).toBe("cache");
    // The other engine is awake before its weights are known to be right.
    expect(feed({ type: "awake", engine: 1, seq: engineSeq(1), tags: ["kv_cache"] })).toEqual([]);
    expect(feed(summed(1, 0), summed(1, 1))).toEqual(["engine 1 verifyWeights"]);
    expect(state.phase).toBe("cache");
    expect(feed({ type: "verified", engine: 1, failure: null })).toEqual([
      "epochMoved",
      "rank 2 opened",
      "rank 3 opened",
    ]);
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
    forget();
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
    forget();
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

  it("has room for what the first sync is compared with, and does not ask for it again", () => {
    start({ release: "needed" }, "bfloat16", 7);
    forget();
    feed(...arrive());
    expect(feed(...room(16))).toEqual(ranks.map((rank) => `rank ${rank} release optimizer`));
    const asked = all.filter((command) => command.type === "send" && command.message.type === "release");
    expect(asked).toHaveLength(4);
    for (const command of asked) expect(command).toMatchObject({ message: { wantBytes: 1 } });
    for (const engine of state.engines) Object.assign(engine, { planned: true, syncs: 1 });
    forget();
    feed(...ranks.map((rank) => release(rank, 0)));
    expect(feed(...room(10))).toEqual(["engine 0 wake weights", "engine 1 wake weights"]);
  });

  it("names its phases for the log", () => {
    openAll();
    const node = all.filter((command) => command.type === "phaseChanged" && command.client === null);
    expect(node.map((command) => (command as { name: string }).name)).toEqual([
      ...["train", "arrive", "release", "wake", "plan", "sync", "cache", "generate"],
    ]);
  });
});
