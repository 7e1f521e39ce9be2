/** The proof that an engine's weights are the trainer's: its workers' sums, and what comes of comparing them. */
import { beforeEach, describe, expect, it } from "vitest";
import type { Command } from "../../../src/phases/index.js";
import { all, beginSync, config, feed, forget, start, state, summed, syncAll, synced } from "./small-node.js";

const endOf = (): Extract<Command, { type: "end" }> | undefined => all.find((command) => command.type === "end");
const timers = (): string[] =>
  all.flatMap((command) =>
    command.type === "setDeadline" || command.type === "clearDeadline" ? [`${command.type} ${command.key}`] : [],
  );

beforeEach(() => {
  start();
  beginSync();
  forget();
});

describe("sums", () => {
  it("have a deadline for each worker, from when it has its weights", () => {
    feed(synced(0, 0));
    expect(timers()).toContain("setDeadline sums: engine 0 worker 0");
    forget();
    feed(synced(0, 1));
    expect(timers()).toContain("setDeadline sums: engine 0 worker 1");
    forget();
    feed(summed(0, 0));
    expect(timers()).toEqual(["clearDeadline sums: engine 0 worker 0"]);
    feed({ type: "deadlinePassed", key: "sums: engine 0 worker 1" });
    expect(endOf()?.failure).toMatchObject({
      code: "DEADLINE",
      message: expect.stringContaining("worker 1 of engine 0 did not sum its weights up"),
    });
  });

  it("come once", () => {
    feed(synced(0, 0), synced(0, 1), summed(0, 0), summed(0, 0));
    expect(endOf()?.failure).toMatchObject({ code: "UNEXPECTED_MESSAGE", found: "state summed" });
  });

  it("do not come when all are there", () => {
    feed(synced(0, 0), synced(0, 1), summed(0, 0), summed(0, 1));
    expect(endOf()).toBeUndefined();
    feed(summed(0, 1));
    expect(endOf()?.failure).toMatchObject({ code: "UNEXPECTED_MESSAGE" });
  });

  it("do not come before the weights", () => {
    feed(summed(0, 0));
    expect(endOf()?.failure).toMatchObject({ code: "UNEXPECTED_MESSAGE", found: "state syncing" });
  });

  it("do not come unasked", () => {
    start({ checks: { ...config().checks, weights: "off" } });
    beginSync();
    feed(synced(0, 0), summed(0, 0));
    expect(endOf()?.failure).toMatchObject({ code: "UNEXPECTED_MESSAGE", found: "state not asked" });
  });
});

describe("a verdict", () => {
  it("that is late is the controller's", () => {
    feed(synced(0, 0), synced(0, 1), summed(0, 0), summed(0, 1));
    feed({ type: "deadlinePassed", key: "verify: engine 0" });
    expect(endOf()?.failure?.message).toMatch(/^the controller did not compare the weights of engine 0/);
  });

  it("moves the epoch on when it is good for every engine, and not before", () => {
    feed(synced(0, 0), synced(0, 1), synced(1, 0), synced(1, 1), summed(0, 0), summed(0, 1));
    feed({ type: "verified", engine: 0, failure: null });
    expect(state.weightEpoch).toBeNull();
    const failure = { code: "WEIGHT_CHECKSUM_MISMATCH", message: "", expected: "", found: "", action: "" };
    feed(summed(1, 0), summed(1, 1), { type: "verified", engine: 1, failure });
    expect(state.weightEpoch).toBeNull();
    start();
    syncAll();
    expect(state.weightEpoch).toBe(1);
  });
});

it("a failure that ends the run is kept with who reported it", () => {
  const from = { role: "engine", index: 1 } as const;
  const failure = { code: "ENGINE_WORKER_DIED", message: "", expected: "", found: "", action: "" };
  feed({ type: "failed", client: from, failure });
  expect(endOf()).toMatchObject({ from });
});
