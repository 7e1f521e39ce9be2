/** Whether an engine holds the trainer's weights: a comparison of checksums that were made where the data is. */
import type { Failure } from "../protocol/messages.js";

/** Sums of one rank over its own pieces, by tensor of the manifest. */
export interface RankSums {
  readonly rank: number;
  readonly checksums: BigUint64Array;
}

/** Sums of one worker over the elements that it holds, and which those are, by tensor of the manifest. */
export interface WorkerSums {
  readonly worker: number;
  readonly checksums: BigUint64Array;
  /** How many elements of the tensor. */
  readonly coveredElements: BigUint64Array;
  /** The checksum over their indices only. */
  readonly coverage: BigUint64Array;
}

export interface WeightCheck {
  readonly engine: number;
  readonly zeroStage: number;
  readonly names: readonly string[];
  /** Elements of each tensor. */
  readonly elements: readonly number[];
  readonly ranks: readonly RankSums[];
  readonly workers: readonly WorkerSums[];
}

const MODULUS = 64;
const wrap = (value: bigint): bigint => BigInt.asUintN(MODULUS, value);
const hex = (value: bigint): string => `0x${value.toString(16).padStart(16, "0")}`;

/**
 * The first thing that is wrong, or null when every element of every tensor is in the engine, bit for bit.
 *
 * Ranks: under ZeRO-3 each sums its own partition, and S is the sum over the ranks; else each sums a whole
 * replica, and all must be equal (REPLICAS_DIFFER). Workers hold each element m times, m at least 1 (replicated
 * heads, norms): their coverage must be m times the whole tensor (WEIGHTS_NOT_COVERED) and their sums m times S
 * (WEIGHT_CHECKSUM_MISMATCH).
 *
 * @param indexChecksum the checksum over indices 0 … n - 1, for every size in `check.elements`
 */
export function verifyWeights(check: WeightCheck, indexChecksum: (elements: number) => bigint): Failure | null {
  return (
    checkLengths(check) ??
    (check.zeroStage < 3 ? checkReplicas(check) : null) ??
    checkCoverage(check, indexChecksum) ??
    checkSums(check)
  );
}

/** A sum that is missing must not pass for one that agrees. */
function checkLengths({ names, elements, ranks, workers, engine }: WeightCheck): Failure | null {
  const lengths: [string, number][] = [
    ["the shapes of the manifest", elements.length],
    ...ranks.map(({ rank, checksums }): [string, number] => [`the checksums of rank ${rank}`, checksums.length]),
    ...workers.flatMap(({ worker, checksums, coveredElements, coverage }): [string, number][] => [
      [`the checksums of worker ${worker} of engine ${engine}`, checksums.length],
      [`coveredElements of worker ${worker} of engine ${engine}`, coveredElements.length],
      [`the coverage of worker ${worker} of engine ${engine}`, coverage.length],
    ]),
  ];
  const wrong = lengths.find(([, length]) => length !== names.length);
  if (wrong === undefined && ranks.length > 0 && workers.length > 0) return null;
  return {
    code: "WEIGHT_CHECKSUMS_MISSING",
    message: wrong ? `${wrong[0]} are not one for each tensor` : "nobody sent checksums",
    expected: `${names.length} values from every rank and worker`,
    found: wrong ? `${wrong[1]}` : `${ranks.length} ranks, ${workers.length} workers`,
    action: "Use the same version of Baton in every process of the run.",
  };
}

function checkReplicas({ names, ranks }: WeightCheck): Failure | null {
  const [first, ...others] = ranks;
  if (first === undefined) return null;
  for (const other of others) {
    const differing = differences(names, first.checksums, (tensor) => other.checksums[tensor]);
    if (differing.length === 0) continue;
    return {
      code: "REPLICAS_DIFFER",
      message: `ranks ${first.rank} and ${other.rank} do not hold the same parameters: ${list(differing)}`,
      expected: `equal checksums on every rank under ZeRO-0, 1 and 2, as ${hex(first.checksums[names.indexOf(differing[0] as string)] ?? 0n)}`,
      found: `${differing.length} of ${names.length} tensors differ`,
      action: "The ranks have drifted apart: look for steps that are not the same on all ranks.",
    };
  }
  return null;
}

/** How often the engine holds each tensor, or what is not covered. */
function checkCoverage(
  { engine, names, elements, workers }: WeightCheck,
  indexChecksum: (elements: number) => bigint,
): Failure | null {
  const uncovered = names.filter((_, tensor) => {
    const count = BigInt(elements[tensor] ?? 0);
    const covered = sum(workers.map((worker) => worker.coveredElements[tensor] ?? 0n));
    if (count === 0n) return covered !== 0n;
    const times = covered / count;
    if (covered % count !== 0n || times < 1n) return true;
    const coverage = wrap(sum(workers.map((worker) => worker.coverage[tensor] ?? 0n)));
    return coverage !== wrap(times * indexChecksum(Number(count)));
  });
  const first = uncovered[0];
  if (first === undefined) return null;
  const tensor = names.indexOf(first);
  const covered = sum(workers.map((worker) => worker.coveredElements[tensor] ?? 0n));
  return {
    code: "WEIGHTS_NOT_COVERED",
    message: `the workers of engine ${engine} do not hold every element of ${list(uncovered)}`,
    expected: `each of ${elements[tensor]} elements of ${first} equally often, at least once`,
    found: `${covered} elements in ${workers.length} workers`,
    action: "Compare the model's config.json with the trainer's model: names and shapes must be the same.",
  };
}

function checkSums({ engine, zeroStage, names, elements, ranks, workers }: WeightCheck): Failure | null {
  const wrong = names.filter((_, tensor) => {
    const count = BigInt(elements[tensor] ?? 0);
    if (count === 0n) return false;
    const times = sum(workers.map((worker) => worker.coveredElements[tensor] ?? 0n)) / count;
    return engineSum(workers, tensor) !== wrap(times * trainerSum(zeroStage, ranks, tensor));
  });
  const first = wrong[0];
  if (first === undefined) return null;
  const tensor = names.indexOf(first);
  return {
    code: "WEIGHT_CHECKSUM_MISMATCH",
    message: `engine ${engine} does not hold the trainer's weights: ${list(wrong)}`,
    expected: `checksum ${hex(trainerSum(zeroStage, ranks, tensor))} of ${first}, as on the trainer, for each copy`,
    found: `${hex(engineSum(workers, tensor))} over all workers; ${wrong.length} of ${names.length} tensors differ`,
    action:
      "Nothing was generated with them. Run again; if it comes back, set engine.sync to load_weights and report it.",
  };
}

const sum = (values: readonly bigint[]): bigint => values.reduce((total, value) => total + value, 0n);

function trainerSum(zeroStage: number, ranks: readonly RankSums[], tensor: number): bigint {
  if (zeroStage < 3) return ranks[0]?.checksums[tensor] ?? 0n;
  return wrap(sum(ranks.map((rank) => rank.checksums[tensor] ?? 0n)));
}

function engineSum(workers: readonly WorkerSums[], tensor: number): bigint {
  return wrap(sum(workers.map((worker) => worker.checksums[tensor] ?? 0n)));
}

function differences(
  names: readonly string[],
  expected: BigUint64Array,
  found: (tensor: number) => bigint | undefined,
): string[] {
  return names.filter((_, tensor) => expected[tensor] !== found(tensor));
}

function list(names: readonly string[]): string {
  return names.length <= 5 ? names.join(", ") : `${names.slice(0, 5).join(", ")} and ${names.length - 5} more`;
}
