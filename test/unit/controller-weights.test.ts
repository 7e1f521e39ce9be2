/** Which sums of the ranks an engine's are held against: those of the elements as they are, or as they are rounded. */
import { describe, expect, it } from "vitest";
import { WeightTraffic } from "../../src/controller/weights.js";
import { scratchBytes } from "../../src/memory/index.js";
import { indexChecksums } from "../../src/native.js";
import { binaryOf } from "../../src/protocol/arrays.js";
import type { FromClient, Manifest } from "../../src/protocol/messages.js";

const u64 = (...values: bigint[]): Uint8Array => binaryOf(BigUint64Array.from(values));

const manifest: Manifest = {
  type: "manifest",
  zeroStage: 3,
  dtype: "float32",
  segmentBytes: 1,
  names: ["rounded", "exact"],
  dtypes: ["float32", "bfloat16"],
  shapes: [[2, 3], [4]],
  pieceTensor: binaryOf(new Uint32Array(0)),
  pieceStart: u64(),
  pieceElements: u64(),
  pieceOffset: u64(),
  stateBytes: 1,
  arenaBytes: 1,
};

/** One worker that has everything, with these sums; two ranks with sums of 3 + 4 and 30 + 40, rounded 5 + 6. */
async function verified(rounded: readonly number[], held: readonly bigint[], sumsOfRounded = true) {
  const traffic = new WeightTraffic();
  const coverage = await indexChecksums(BigUint64Array.from([6n, 4n]));
  for (const [rank, plain, other] of [
    [0, [3n, 30n], [5n, 0n]],
    [1, [4n, 40n], [6n, 0n]],
  ] as const) {
    traffic.manifest(rank, manifest);
    const message: Extract<FromClient, { type: "exported" }> = {
      type: "exported",
      seq: 1,
      segments: u64(),
      checksums: u64(...plain),
      roundedChecksums: sumsOfRounded ? u64(...other) : u64(),
      last: true,
    };
    traffic.exported(rank, message, []);
  }
  traffic.planned(0, 0, {
    type: "planned",
    seq: 1,
    fallback: null,
    runs: 1,
    copyBytes: 1,
    sources: [],
    coveredElements: u64(6n, 4n),
    coverage: binaryOf(coverage),
    rounded: binaryOf(Uint32Array.from(rounded)),
  });
  traffic.summed(0, 0, { type: "summed", seq: 1, checksums: u64(...held), seconds: 0 });
  // A quick rank may be back, with another model, before its last one has been compared.
  traffic.manifest(0, { ...manifest, names: ["another"], dtypes: ["bfloat16"], shapes: [[1]] });
  return (await traffic.verify(0)).failure?.code ?? null;
}

describe("the weights of an engine", () => {
  it("are held against the ranks' sums as they are", async () => {
    expect(await verified([], [7n, 70n])).toBeNull();
    expect(await verified([], [11n, 70n])).toBe("WEIGHT_CHECKSUM_MISMATCH");
  });

  it("that it rounds, against those of the rounded elements, and only these", async () => {
    expect(await verified([0], [11n, 70n])).toBeNull();
    expect(await verified([0], [7n, 70n])).toBe("WEIGHT_CHECKSUM_MISMATCH");
    expect(await verified([0], [11n, 71n])).toBe("WEIGHT_CHECKSUM_MISMATCH");
  });

  it("that it rounds do not pass without such sums", async () => {
    expect(await verified([0], [7n, 70n], false)).toBe("WEIGHT_CHECKSUMS_MISSING");
  });
});

describe("scratch of a worker", () => {
  it("is the largest tensor, or as many small ones as it puts together at a time", () => {
    expect(scratchBytes(manifest)).toBe(6 * 4 + 4 * 2);
    const large = { ...manifest, shapes: [[2 ** 20, 40], [4]] };
    expect(scratchBytes(large)).toBe(160 * 2 ** 20);
    const many = {
      ...manifest,
      shapes: [
        [2 ** 20, 15],
        [2 ** 20, 15],
      ],
    };
    expect(scratchBytes(many)).toBe(64 * 2 ** 20);
  });
});
