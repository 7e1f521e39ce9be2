/**
 * The traffic of a weight sync through the controller: manifests to workers, descriptors of exported segments from
 * ranks to workers, checksums from both. An open descriptor holds the memory of its segment, so each is closed as
 * soon as the last worker that needs it has got it.
 */
import { BatonError } from "../errors.js";
import { manifestElements, verifyWeights, type WeightCheck } from "../memory/index.js";
import { closeDescriptor } from "../native.js";
import { binaryOf, u32s, u64s } from "../protocol/arrays.js";
import type { Failure, FromClient, FromController, Manifest } from "../protocol/messages.js";
import { IndexSums } from "./index-sums.js";
import type { Connection } from "./server.js";

type Message<T extends FromClient["type"]> = Extract<FromClient, { type: T }>;

/** Linux takes 253 descriptors with one message; fewer keep a frame small. */
const DESCRIPTORS_PER_FRAME = 128;

export interface WorkerPlan {
  readonly engine: number;
  readonly worker: number;
  readonly planned: Message<"planned">;
  /** Segments by local rank. */
  readonly segments: ReadonlyMap<number, BigUint64Array>;
}

interface Exported {
  readonly descriptor: number;
  /** Workers that still have to get it. */
  wanted: number;
}

const key = (engine: number, worker: number): string => `${engine}/${worker}`;

export class WeightTraffic {
  readonly manifests = new Map<number, Manifest>();
  readonly #plans = new Map<string, WorkerPlan>();
  readonly #summed = new Map<string, Message<"summed">>();
  /** Workers that owe the sums of what they take. */
  readonly #owing = new Set<string>();
  /** What the sums of this sync are of: a rank that is quick may have other tensors before they are compared. */
  #compared: Manifest | undefined;
  /** By local rank, then by segment. */
  readonly #exported = new Map<number, Map<bigint, Exported>>();
  /** u64 per tensor, by local rank: as the elements are, and as they are rounded. */
  readonly #rankSums = new Map<number, { readonly plain: BigUint64Array; readonly rounded: BigUint64Array }>();

  readonly #indexSums = new IndexSums();

  manifest(rank: number, manifest: Manifest): void {
    this.manifests.set(rank, manifest);
    // Seconds for the largest models, so they begin now; `verify` reports what goes wrong.
    this.#indexSums.prepare(manifestElements(manifest)).catch(() => {});
  }

  plan(engine: number, worker: number): WorkerPlan | undefined {
    return this.#plans.get(key(engine, worker));
  }

  /** The plans and last sums of the workers of one engine, by tensor-parallel rank. */
  #workersOf(engine: number): { plan: WorkerPlan; summed: Message<"summed"> | undefined }[] {
    return [...this.#plans.values()]
      .filter((plan) => plan.engine === engine)
      .sort((a, b) => a.worker - b.worker)
      .map((plan) => ({ plan, summed: this.#summed.get(key(engine, plan.worker)) }));
  }

  planned(engine: number, worker: number, planned: Message<"planned">): void {
    const segments = new Map(
      planned.sources.map((source) => [source.rank, u64s(source.segments, "planned.sources.segments")] as const),
    );
    this.#plans.set(key(engine, worker), { engine, worker, planned, segments });
  }

  summed(engine: number, worker: number, summed: Message<"summed">): void {
    this.#owing.delete(key(engine, worker));
    this.#summed.set(key(engine, worker), summed);
  }

  /** Whether a worker still has to say the sums of the weights that it was sent for. */
  owesSums(engine: number, worker: number): boolean {
    return this.#owing.has(key(engine, worker));
  }

  /** Sends the manifests of all ranks to a worker. */
  sendManifests(to: Connection, seq: number): void {
    const ranks = [...this.manifests].sort(([a], [b]) => a - b);
    ranks.forEach(([rank, manifest], position) => {
      to.send({ type: "rankManifest", seq, rank, gpu: rank, last: position === ranks.length - 1, manifest });
    });
  }

  /** Asks a rank for the segments that any plan names. Forgets (and closes) what it had exported before. */
  requestExport(to: Connection, rank: number, seq: number, checksums: boolean): void {
    this.#closeExported(rank);
    this.#rankSums.delete(rank);
    const wanted = new Set<bigint>();
    for (const plan of this.#plans.values()) {
      for (const segment of plan.segments.get(rank) ?? []) wanted.add(segment);
    }
    const segments = BigUint64Array.from([...wanted].sort((a, b) => (a < b ? -1 : 1)));
    to.send({ type: "exportSegments", seq, segments: binaryOf(segments), checksums });
  }

  /**
   * Takes the descriptors of an `exported` frame over.
   *
   * @returns true when it was the last frame of the answer
   * @throws BatonError EXPORT_INCOMPLETE when descriptors and segments do not match, or some are missing
   */
  exported(rank: number, message: Message<"exported">, descriptors: readonly number[]): boolean {
    const segments = u64s(message.segments, "exported.segments");
    const known = this.#exported.get(rank) ?? new Map<bigint, Exported>();
    this.#exported.set(rank, known);
    if (segments.length !== descriptors.length) {
      for (const descriptor of descriptors) closeDescriptor(descriptor);
      throw incomplete(rank, `${segments.length} descriptors`, `${descriptors.length}`);
    }
    segments.forEach((segment, position) => {
      const descriptor = descriptors[position] as number;
      const before = known.get(segment);
      if (before !== undefined) closeDescriptor(before.descriptor);
      known.set(segment, { descriptor, wanted: this.#workersThatWant(rank, segment) });
    });
    if (!message.last) return false;
    for (const plan of this.#plans.values()) {
      for (const segment of plan.segments.get(rank) ?? []) {
        if (!known.has(segment)) throw incomplete(rank, `segment ${segment}`, "not exported");
      }
    }
    if (rank === 0) this.#compared = this.manifests.get(rank);
    if (message.checksums.byteLength > 0) {
      this.#rankSums.set(rank, {
        plain: u64s(message.checksums, "exported.checksums"),
        rounded: u64s(message.roundedChecksums, "exported.roundedChecksums"),
      });
    }
    return true;
  }

  /** Sends a worker the descriptors that its plan names; ours are closed with the last worker that wants them. */
  sendSources(
    to: Connection,
    plan: WorkerPlan,
    command: { readonly seq: number; readonly epoch: number; readonly compare: boolean; readonly checksums: boolean },
  ): void {
    const worker = key(plan.engine, plan.worker);
    this.#summed.delete(worker);
    if (command.checksums) this.#owing.add(worker);
    const frames: { rank: number; segments: BigUint64Array }[] = [];
    for (const [rank, segments] of plan.segments) {
      for (let start = 0; start < segments.length; start += DESCRIPTORS_PER_FRAME) {
        frames.push({ rank, segments: segments.subarray(start, start + DESCRIPTORS_PER_FRAME) });
      }
    }
    // A worker without a source gets one empty frame, so that it learns of the end.
    if (frames.length === 0) frames.push({ rank: 0, segments: new BigUint64Array(0) });
    frames.forEach(({ rank, segments }, position) => {
      const known = this.#exported.get(rank);
      const exported = Array.from(segments, (segment) => {
        const found = known?.get(segment);
        if (found === undefined) throw incomplete(rank, `segment ${segment}`, "closed already");
        return [segment, found] as const;
      });
      const message: FromController = {
        type: "sources",
        seq: command.seq,
        epoch: command.epoch,
        rank,
        segmentBytes: this.manifests.get(rank)?.segmentBytes ?? 0,
        segments: binaryOf(segments),
        compare: command.compare,
        checksums: command.checksums,
        last: position === frames.length - 1,
      };
      to.send(
        message,
        exported.map(([, { descriptor }]) => descriptor),
      );
      for (const [segment, source] of exported) {
        source.wanted -= 1;
        if (source.wanted <= 0) {
          closeDescriptor(source.descriptor);
          known?.delete(segment);
        }
      }
    });
  }

  /** Compares the checksums of an engine's workers with those of the ranks, tensor by tensor. */
  async verify(
    engine: number,
  ): Promise<{ readonly passed: number; readonly failed: number; readonly failure: Failure | null }> {
    const first = this.#compared;
    if (first === undefined) throw new RangeError("nothing was exported");
    const workers = this.#workersOf(engine);
    const rounded = new Set(workers.flatMap(({ plan }) => [...u32s(plan.planned.rounded, "planned.rounded")]));
    const check: WeightCheck = {
      engine,
      zeroStage: first.zeroStage,
      names: first.names,
      elements: manifestElements(first),
      ranks: [...this.#rankSums]
        .sort(([a], [b]) => a - b)
        .map(([rank, sums]) => ({ rank, checksums: asInEngine(sums, rounded) })),
      workers: workers.map(({ plan: { worker, planned }, summed }) => ({
        worker,
        checksums: u64s(summed?.checksums ?? new Uint8Array(0), "summed.checksums"),
        coveredElements: u64s(planned.coveredElements, "planned.coveredElements"),
        coverage: u64s(planned.coverage, "planned.coverage"),
      })),
    };
    await this.#indexSums.prepare(check.elements);
    const failureOf = (part: WeightCheck): Failure | null => verifyWeights(part, (size) => this.#indexSums.of(size));
    const failure = failureOf(check);
    const failed = failure === null ? 0 : check.names.filter((_, tensor) => failureOf(only(check, tensor))).length;
    return { passed: check.names.length - failed, failed, failure };
  }

  /** Closes every descriptor that is still here. */
  close(): void {
    for (const rank of [...this.#exported.keys()]) this.#closeExported(rank);
  }

  #closeExported(rank: number): void {
    for (const { descriptor } of this.#exported.get(rank)?.values() ?? []) closeDescriptor(descriptor);
    this.#exported.delete(rank);
  }

  #workersThatWant(rank: number, segment: bigint): number {
    return [...this.#plans.values()].filter((plan) => plan.segments.get(rank)?.includes(segment) === true).length;
  }
}

/** The sums of a rank over what an engine makes of its elements that rounds these tensors. */
function asInEngine(
  sums: { readonly plain: BigUint64Array; readonly rounded: BigUint64Array },
  rounded: ReadonlySet<number>,
): BigUint64Array {
  if (rounded.size === 0) return sums.plain;
  // Missing sums must not pass for others.
  if (sums.rounded.length !== sums.plain.length) return sums.rounded;
  return sums.plain.map((plain, tensor) => (rounded.has(tensor) ? (sums.rounded[tensor] ?? 0n) : plain));
}

/** The check of one tensor alone. Values that are missing stay missing. */
function only(check: WeightCheck, tensor: number): WeightCheck {
  const one = (values: BigUint64Array): BigUint64Array => values.slice(tensor, tensor + 1);
  return {
    ...check,
    names: check.names.slice(tensor, tensor + 1),
    elements: check.elements.slice(tensor, tensor + 1),
    ranks: check.ranks.map(({ rank, checksums }) => ({ rank, checksums: one(checksums) })),
    workers: check.workers.map(({ worker, checksums, coveredElements, coverage }) => ({
      worker,
      checksums: one(checksums),
      coveredElements: one(coveredElements),
      coverage: one(coverage),
    })),
  };
}

function incomplete(rank: number, expected: string, found: string): BatonError {
  return new BatonError({
    code: "EXPORT_INCOMPLETE",
    message: `Rank ${rank} did not export the segments that it was asked for.`,
    expected,
    found,
    action: "This is a fault of Baton: please report it with events.jsonl.",
  });
}
