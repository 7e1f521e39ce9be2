import { describe, expect, it } from "vitest";
import { formatBytes, Ledger } from "../../../src/memory/index.js";

const GIB = 2 ** 30;

/** A GPU after one handoff into generation: 80 GiB, an engine of 15 + 40, a rank that kept 2. */
function generating(): Ledger {
  const ledger = new Ledger(2);
  ledger.engineReady(0, 0, 15 * GIB, 40 * GIB);
  ledger.attached(0, 0);
  ledger.released(0, 0, { stage: "optimizer", releasedBytes: 30 * GIB, keptBytes: 16 * GIB, outsideBytes: 1 * GIB });
  ledger.awake(0, ["weights"]);
  ledger.released(0, 0, { stage: "all", releasedBytes: 15 * GIB, keptBytes: 1 * GIB, outsideBytes: 1 * GIB });
  ledger.awake(0, ["kv_cache"]);
  ledger.measured(0, 80 * GIB, 60 * GIB);
  return ledger;
}

describe("the ledger", () => {
  it("knows nothing at first, and says so", () => {
    expect(new Ledger(1).figures(0)).toEqual({
      index: 0,
      totalBytes: null,
      usedBytes: null,
      peakBytes: null,
      trainingReleasedBytes: null,
      leftByTrainingBytes: null,
      leftByEngineBytes: null,
      owners: [],
      unknownBytes: null,
    });
  });

  it("adds the stages of a release, and keeps what was left", () => {
    const { trainingReleasedBytes, leftByTrainingBytes } = generating().figures(0);
    expect(trainingReleasedBytes).toBe(45 * GIB);
    expect(leftByTrainingBytes).toBe(2 * GIB);
  });

  it("gives every byte an owner, and the rest to nobody", () => {
    const { owners, unknownBytes } = generating().figures(0);
    expect(owners).toEqual([
      { name: "training of rank 0", bytes: 2 * GIB },
      { name: "weights of engine 0", bytes: 15 * GIB },
      { name: "cache of engine 0", bytes: 40 * GIB },
    ]);
    expect(unknownBytes).toBe(3 * GIB);
  });

  it("moves bytes back with a handoff to training", () => {
    const ledger = generating();
    ledger.asleep(0, GIB);
    ledger.resuming(0, 0);
    ledger.measured(0, 80 * GIB, 48 * GIB);
    const { owners, peakBytes, leftByEngineBytes, unknownBytes } = ledger.figures(0);
    expect(owners).toEqual([
      { name: "training of rank 0", bytes: 47 * GIB },
      { name: "engine 0 besides", bytes: GIB },
    ]);
    expect(leftByEngineBytes).toBe(GIB);
    expect(peakBytes).toBe(60 * GIB);
    expect(unknownBytes).toBe(0);
    ledger.released(0, 0, { stage: "all", releasedBytes: 5, keptBytes: 1, outsideBytes: 0 });
    expect(ledger.figures(0).trainingReleasedBytes).toBe(5);
  });

  it("keeps what is unknown unknown", () => {
    const ledger = generating();
    ledger.context(0, "rank 0", null);
    expect(ledger.figures(0).unknownBytes).toBeNull();
    ledger.asleep(0, null);
    expect(ledger.figures(0).leftByEngineBytes).toBeNull();
    expect(ledger.figures(1).unknownBytes).toBeNull();
  });

  it("takes peaks from the sampler too, and never lowers them", () => {
    const ledger = new Ledger(1);
    ledger.measured(0, 10, 3, 7);
    ledger.measured(0, 10, 4);
    expect(ledger.figures(0).peakBytes).toBe(7);
  });

  it("says who holds a GPU, the largest first", () => {
    expect(generating().whoHolds(0, [{ name: "python", pid: 42, usedBytes: null }])).toBe(
      "GPU 0: 60.0 GiB of 80.0 GiB in use; held by cache of engine 0 40.0 GiB, weights of engine 0 15.0 GiB, " +
        "training of rank 0 2.0 GiB, nobody that Baton knows 3.0 GiB; processes there: python (42) an unknown amount",
    );
    expect(new Ledger(1).whoHolds(0)).toBe("GPU 0: an unknown amount of an unknown amount in use");
  });

  it("has no other GPUs", () => {
    expect(() => new Ledger(1).figures(1)).toThrow(RangeError);
  });
});

it("bytes are written in binary units", () => {
  expect([null, 0, 1023, 1024, 1.5 * 2 ** 40].map(formatBytes)).toEqual([
    "an unknown amount",
    "0 bytes",
    "1023 bytes",
    "1.0 KiB",
    "1.5 TiB",
  ]);
});
