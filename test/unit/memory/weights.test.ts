import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import {
  checkPieces,
  manifestElements,
  manifestSignature,
  type RankSums,
  verifyWeights,
  type WeightCheck,
  type WorkerSums,
} from "../../../src/memory/index.js";
import { binaryOf } from "../../../src/protocol/arrays.js";
import type { Failure, Manifest } from "../../../src/protocol/messages.js";

vi.setConfig({ testTimeout: 120_000 });

const wrap = (value: bigint): bigint => BigInt.asUintN(64, value);

const wrap32 = (value: bigint): bigint => BigInt.asUintN(32, value);

/** The element hash as it is defined, in the plainest way; for values and places below 2^32. */
function elementHash(index: number, value: bigint): bigint {
  let x = BigInt(index);
  x = wrap32((x ^ (x >> 16n)) * 0x7feb352dn);
  x = wrap32((x ^ (x >> 15n)) * 0x846ca68bn);
  return wrap((value + 1n) * ((1n << 32n) + (x ^ (x >> 16n))));
}

/** Sum over some elements of a tensor; `values` null: over their indices only. */
const checksum = (indices: readonly number[], values: readonly bigint[] | null): bigint =>
  wrap(indices.reduce((sum, index) => sum + elementHash(index, values?.[index] ?? 0n), 0n));

/** In the addon they are tested against the same definition: native-checksums.test.ts. */
const indexChecksum = (elements: number): bigint =>
  checksum(
    Array.from({ length: elements }, (_, i) => i),
    null,
  );
const verify = (check: WeightCheck): Failure | null => verifyWeights(check, indexChecksum);

// ---- a small world: tensors, split over ranks and workers in any way ----------------------------------------

interface Tensor {
  readonly name: string;
  readonly values: readonly bigint[];
  /** The rank of each element under ZeRO-3. */
  readonly owner: readonly number[];
  /** For each worker, the elements that it holds. */
  readonly held: readonly (readonly number[])[];
}

const tensorOf = (index: number, workers: number): fc.Arbitrary<Tensor> =>
  fc.integer({ min: 1, max: 12 }).chain((elements) => {
    const all = Array.from({ length: elements }, (_, i) => i);
    const split = fc.array(fc.nat(workers - 1), { minLength: elements, maxLength: elements });
    return fc.record({
      name: fc.constant(`tensor.${index}`),
      values: fc.array(fc.bigInt({ min: 0n, max: 0xffffffffn }), { minLength: elements, maxLength: elements }),
      owner: fc.array(fc.nat(2), { minLength: elements, maxLength: elements }),
      // Replicated in every worker, or each element in one of them.
      held: fc.oneof(
        fc.constant(Array.from({ length: workers }, () => all)),
        split.map((of) => Array.from({ length: workers }, (_, worker) => all.filter((i) => of[i] === worker))),
      ),
    });
  });

const worlds = fc.integer({ min: 1, max: 4 }).chain((workers) =>
  fc.record({
    zeroStage: fc.constantFrom(0, 1, 2, 3),
    tensors: fc
      .integer({ min: 1, max: 4 })
      .chain((count) => fc.tuple(...Array.from({ length: count }, (_, index) => tensorOf(index, workers)))),
    workers: fc.constant(workers),
  }),
);

interface World {
  readonly zeroStage: number;
  readonly tensors: readonly Tensor[];
  readonly workers: number;
}

function checkOf({ zeroStage, tensors, workers }: World): WeightCheck {
  const all = (tensor: Tensor): number[] => tensor.values.map((_, i) => i);
  const u64 = (values: bigint[]): BigUint64Array => BigUint64Array.from(values);
  return {
    engine: 1,
    zeroStage,
    names: tensors.map(({ name }) => name),
    elements: tensors.map(({ values }) => values.length),
    ranks: [0, 1, 2].map((rank): RankSums => {
      const own = (tensor: Tensor) =>
        zeroStage < 3 ? all(tensor) : all(tensor).filter((i) => tensor.owner[i] === rank);
      return { rank, checksums: u64(tensors.map((tensor) => checksum(own(tensor), tensor.values))) };
    }),
    workers: Array.from({ length: workers }, (_, worker): WorkerSums => {
      const held = (tensor: Tensor): readonly number[] => tensor.held[worker] ?? [];
      return {
        worker,
        checksums: u64(tensors.map((tensor) => checksum(held(tensor), tensor.values))),
        coveredElements: u64(tensors.map((tensor) => BigInt(held(tensor).length))),
        coverage: u64(tensors.map((tensor) => checksum(held(tensor), null))),
      };
    }),
  };
}

const tweak = (values: BigUint64Array, at: number, by: bigint): BigUint64Array => {
  const copy = values.slice();
  copy[at] = wrap((copy[at] ?? 0n) + by);
  return copy;
};

describe("verifying weights", () => {
  it("accepts every split of the same values", () => {
    fc.assert(
      fc.property(worlds, (world) => {
        expect(verify(checkOf(world))).toBeNull();
      }),
      { numRuns: 500 },
    );
  });

  it("finds one flipped bit in the engine, and names the tensor", () => {
    fc.assert(
      fc.property(worlds, fc.nat(), fc.nat(31), (world, pick, bit) => {
        const tensor = world.tensors[pick % world.tensors.length] as Tensor;
        const worker = tensor.held.findIndex((held) => held.length > 0);
        const index = tensor.held[worker]?.[0] ?? 0;
        const values = [...tensor.values];
        values[index] = (values[index] ?? 0n) ^ (1n << BigInt(bit));
        const check = checkOf(world);
        const position = world.tensors.indexOf(tensor);
        const flipped = checksum(tensor.held[worker] ?? [], values);
        const workers = check.workers.map((one) => {
          if (one.worker !== worker) return one;
          const checksums = one.checksums.slice();
          checksums[position] = flipped;
          return { ...one, checksums };
        });
        const failure = verify({ ...check, workers });
        expect(failure?.code).toBe("WEIGHT_CHECKSUM_MISMATCH");
        expect(failure?.message).toContain(tensor.name);
        expect(failure?.message).toContain("engine 1");
      }),
      { numRuns: 500 },
    );
  });

  it("finds two elements that changed places", () => {
    const world: World = {
      zeroStage: 3,
      workers: 1,
      tensors: [{ name: "a", values: [1n, 2n], owner: [0, 1], held: [[0, 1]] }],
    };
    const check = checkOf(world);
    const swapped = BigUint64Array.of(checksum([0, 1], [2n, 1n]));
    const workers = check.workers.map((one) => ({ ...one, checksums: swapped }));
    expect(verify({ ...check, workers })?.code).toBe("WEIGHT_CHECKSUM_MISMATCH");
  });

  it("finds elements that are missing, double or others than they should be", () => {
    fc.assert(
      fc.property(worlds, fc.constantFrom("coveredElements", "coverage"), fc.nat(), (world, field, pick) => {
        const check = checkOf(world);
        const workers = check.workers.map((one, at) =>
          at === 0 ? { ...one, [field]: tweak(one[field as "coverage"], pick % world.tensors.length, 1n) } : one,
        );
        // One element more can be one whole copy more of a tensor of one element; then the sums do not fit.
        expect(verify({ ...check, workers })?.code).toMatch(/WEIGHTS_NOT_COVERED|WEIGHT_CHECKSUM_MISMATCH/);
      }),
      { numRuns: 300 },
    );
  });

  it("finds a tensor that no worker holds", () => {
    const tensors = [{ name: "a", values: [1n, 2n], owner: [0, 1], held: [[]] }];
    expect(verify(checkOf({ zeroStage: 2, tensors, workers: 1 }))?.code).toBe("WEIGHTS_NOT_COVERED");
  });

  it("finds replicas that have drifted apart, under ZeRO-0, 1 and 2", () => {
    fc.assert(
      fc.property(worlds, fc.nat(2), (world, rank) => {
        const check = checkOf(world);
        const ranks = check.ranks.map((one) =>
          one.rank === rank ? { ...one, checksums: tweak(one.checksums, 0, 1n) } : one,
        );
        const expected = world.zeroStage < 3 ? "REPLICAS_DIFFER" : "WEIGHT_CHECKSUM_MISMATCH";
        expect(verify({ ...check, ranks })?.code).toBe(expected);
      }),
    );
  });

  it("does not take missing sums for equal ones", () => {
    const check = checkOf({
      zeroStage: 3,
      workers: 1,
      tensors: [{ name: "a", values: [1n], owner: [0], held: [[0]] }],
    });
    const none = new BigUint64Array();
    const cases: WeightCheck[] = [
      { ...check, ranks: [] },
      { ...check, workers: [] },
      { ...check, ranks: check.ranks.map((one) => ({ ...one, checksums: none })) },
      { ...check, workers: check.workers.map((one) => ({ ...one, checksums: none })) },
      { ...check, workers: check.workers.map((one) => ({ ...one, coverage: none })) },
      { ...check, workers: check.workers.map((one) => ({ ...one, coveredElements: none })) },
    ];
    for (const one of cases) expect(verify(one)?.code).toBe("WEIGHT_CHECKSUMS_MISSING");
  });

  it("uses the index checksum that it is given", () => {
    const check = checkOf({
      zeroStage: 3,
      workers: 1,
      tensors: [{ name: "a", values: [1n], owner: [0], held: [[0]] }],
    });
    expect(verifyWeights(check, () => 1n)?.code).toBe("WEIGHTS_NOT_COVERED");
  });
});

// ---- manifests ------------------------------------------------------------------------------------------------

/** Pieces as [tensor, start, elements]. */
function manifest(zeroStage: number, pieces: readonly (readonly [number, number, number])[]): Manifest {
  return {
    type: "manifest",
    zeroStage,
    dtype: "float32",
    segmentBytes: 1,
    names: ["a", "b"],
    dtypes: ["float32", "float32"],
    shapes: [[2, 3], [4]],
    pieceTensor: binaryOf(Uint32Array.from(pieces, ([tensor]) => tensor)),
    pieceStart: binaryOf(BigUint64Array.from(pieces, ([, start]) => BigInt(start))),
    pieceElements: binaryOf(BigUint64Array.from(pieces, ([, , elements]) => BigInt(elements))),
    pieceOffset: binaryOf(new BigUint64Array(pieces.length)),
    stateBytes: 1,
    arenaBytes: 1,
  };
}
const whole = [
  [0, 0, 6],
  [1, 0, 4],
] as const;

describe("manifests", () => {
  it("have one signature for one model, whatever the addresses", () => {
    const one = manifest(3, [[0, 0, 3]]);
    expect(manifestSignature({ ...one, stateBytes: 9, pieceOffset: new Uint8Array(8) })).toBe(manifestSignature(one));
    const others: Manifest[] = [
      { ...one, zeroStage: 2 },
      { ...one, dtype: "bfloat16" },
      { ...one, names: ["b", "a"] },
      { ...one, dtypes: ["float32", "bfloat16"] },
      { ...one, shapes: [[3, 2], [4]] },
    ];
    for (const other of others) expect(manifestSignature(other)).not.toBe(manifestSignature(one));
    expect(manifestElements(one)).toEqual([6, 4]);
  });

  const check = (...manifests: Manifest[]): string | undefined =>
    checkPieces(manifests.map((one, rank) => ({ rank, manifest: one })))?.code;

  it("hold the whole model: once on every rank, or once on all together", () => {
    expect(check(manifest(2, whole), manifest(2, whole))).toBeUndefined();
    const parts = [
      manifest(3, [
        [0, 3, 3],
        [1, 2, 2],
      ]),
      manifest(3, [
        [1, 0, 2],
        [0, 0, 3],
        [1, 4, 0],
      ]),
    ];
    expect(check(...parts)).toBeUndefined();
  });

  it.each<[string, Manifest[]]>([
    [
      "a gap",
      [
        manifest(3, [
          [0, 0, 2],
          [0, 3, 3],
          [1, 0, 4],
        ]),
      ],
    ],
    [
      "an end that is missing",
      [
        manifest(3, [
          [0, 0, 5],
          [1, 0, 4],
        ]),
      ],
    ],
    [
      "a piece that is double",
      [
        manifest(3, [
          [0, 0, 6],
          [0, 2, 1],
          [1, 0, 4],
        ]),
      ],
    ],
    [
      "a piece beyond the end",
      [
        manifest(3, [
          [0, 0, 7],
          [1, 0, 4],
        ]),
      ],
    ],
    ["a tensor that nobody has", [manifest(3, [[0, 0, 6]])]],
    ["a tensor that is not there", [manifest(3, [...whole, [2, 0, 1]])]],
    ["a rank that has only a part under ZeRO-2", [manifest(2, whole), manifest(2, [[0, 0, 6]])]],
    ["arrays of different lengths", [{ ...manifest(3, whole), pieceStart: new Uint8Array(8) }]],
  ])("with %s are refused", (_, manifests) => {
    expect(check(...manifests)).toBe("MANIFEST_INCOMPLETE");
  });
});
