/**
 * Who holds how many bytes of which GPU. Fed with what NVML shows and what clients report; keeps the figures of
 * the summary and explains a GPU without room. What is not known is null, never 0.
 */
import type { WakeTag } from "../protocol/messages.js";

/** A share of a GPU. */
export interface Owner {
  /** "training of rank 3", "weights of engine 0", … */
  readonly name: string;
  /** null: it holds something, how much is not known. */
  readonly bytes: number | null;
}

export interface GpuFigures {
  readonly index: number;
  readonly totalBytes: number | null;
  readonly usedBytes: number | null;
  /** Most that was seen in use. */
  readonly peakBytes: number | null;
  /** What the rank gave back in its last handoff, all stages together. */
  readonly trainingReleasedBytes: number | null;
  /** What the rank kept then: in its pool, and outside of it. */
  readonly leftByTrainingBytes: number | null;
  /** What the engine said it kept when it last went to sleep. */
  readonly leftByEngineBytes: number | null;
  readonly owners: readonly Owner[];
  /** In use and owned by nobody that Baton knows; null when an owner's share, or the total, is not known. */
  readonly unknownBytes: number | null;
}

/** What a rank reports of one release. */
export interface ReleaseReport {
  readonly stage: "optimizer" | "all";
  readonly releasedBytes: number;
  readonly keptBytes: number;
  readonly outsideBytes: number;
}

/** A process of a GPU, as NVML lists it. */
export interface GpuProcess {
  readonly name: string;
  readonly pid: number;
  readonly usedBytes: number | null;
}

interface Gpu {
  totalBytes: number | null;
  usedBytes: number | null;
  peakBytes: number | null;
  training: { rank: number; bytes: number | null } | null;
  /** Of the handoff that goes on. */
  releasedBytes: number;
  trainingReleasedBytes: number | null;
  leftByTrainingBytes: number | null;
  engine: { engine: number; weightBytes: number; cacheBytes: number; awake: ReadonlySet<WakeTag> } | null;
  leftByEngineBytes: number | null;
  contextBytes: Map<string, number | null>;
}

export class Ledger {
  private readonly gpus: Gpu[];

  constructor(gpus: number) {
    this.gpus = Array.from({ length: gpus }, () => ({
      totalBytes: null,
      usedBytes: null,
      peakBytes: null,
      training: null,
      releasedBytes: 0,
      trainingReleasedBytes: null,
      leftByTrainingBytes: null,
      engine: null,
      leftByEngineBytes: null,
      contextBytes: new Map(),
    }));
  }

  /** NVML's totals. Its figures for single processes go stale while memory is unmapped; the totals do not. */
  measured(gpu: number, totalBytes: number, usedBytes: number, peakBytes = usedBytes): void {
    const entry = this.gpu(gpu);
    entry.totalBytes = totalBytes;
    entry.usedBytes = usedBytes;
    entry.peakBytes = Math.max(entry.peakBytes ?? 0, usedBytes, peakBytes);
  }

  /** A process has a context on this GPU (null: of unknown size). */
  context(gpu: number, process: string, bytes: number | null): void {
    this.gpu(gpu).contextBytes.set(process, bytes);
  }

  /** A rank attached its training state; its true size on the GPU is known after the first release. */
  attached(gpu: number, rank: number): void {
    this.gpu(gpu).training = { rank, bytes: null };
  }

  released(gpu: number, rank: number, report: ReleaseReport): void {
    const entry = this.gpu(gpu);
    // The optimizer's stage comes first, when there is one; a rank that has resumed starts anew.
    entry.releasedBytes += report.releasedBytes;
    entry.trainingReleasedBytes = entry.releasedBytes;
    entry.leftByTrainingBytes = report.keptBytes + report.outsideBytes;
    entry.training = { rank, bytes: entry.leftByTrainingBytes };
  }

  /** A rank may take back all that it gave. */
  resuming(gpu: number, rank: number): void {
    const entry = this.gpu(gpu);
    const left = entry.leftByTrainingBytes;
    entry.training = { rank, bytes: left === null ? null : left + entry.releasedBytes };
    entry.releasedBytes = 0;
  }

  /** An engine started; it sleeps. */
  engineReady(gpu: number, engine: number, weightBytes: number, cacheBytes: number): void {
    this.gpu(gpu).engine = { engine, weightBytes, cacheBytes, awake: new Set() };
  }

  awake(gpu: number, tags: readonly WakeTag[]): void {
    const entry = this.gpu(gpu);
    if (entry.engine) entry.engine = { ...entry.engine, awake: new Set([...entry.engine.awake, ...tags]) };
  }

  /** @param leftBytes what the engine says it still holds here; null: it does not know */
  asleep(gpu: number, leftBytes: number | null): void {
    const entry = this.gpu(gpu);
    if (entry.engine) entry.engine = { ...entry.engine, awake: new Set() };
    entry.leftByEngineBytes = leftBytes;
  }

  /** What the engine holds here, as far as it has said: what is awake of it, and what it keeps while it sleeps. */
  engineBytes(gpu: number): number {
    const { engine, leftByEngineBytes } = this.gpu(gpu);
    if (engine === null) return 0;
    const { weightBytes, cacheBytes, awake } = engine;
    const awakeBytes = (awake.has("weights") ? weightBytes : 0) + (awake.has("kv_cache") ? cacheBytes : 0);
    return awakeBytes + (leftByEngineBytes ?? 0);
  }

  figures(gpu: number): GpuFigures {
    const entry = this.gpu(gpu);
    const owners = ownersOf(entry);
    const known = owners.reduce<number | null>(
      (sum, { bytes }) => (sum === null || bytes === null ? null : sum + bytes),
      0,
    );
    const { totalBytes, usedBytes, peakBytes, trainingReleasedBytes, leftByTrainingBytes, leftByEngineBytes } = entry;
    return {
      index: gpu,
      totalBytes,
      usedBytes,
      peakBytes,
      trainingReleasedBytes,
      leftByTrainingBytes,
      leftByEngineBytes,
      owners,
      // Reports and measurements are not of one instant: less than nothing is nothing.
      unknownBytes: usedBytes === null || known === null ? null : Math.max(0, usedBytes - known),
    };
  }

  /** One line for an error about missing room: the largest first. */
  whoHolds(gpu: number, processes: readonly GpuProcess[] = []): string {
    const { totalBytes, usedBytes, owners, unknownBytes } = this.figures(gpu);
    const held = owners
      .filter(({ bytes }) => bytes !== 0)
      .sort((a, b) => (b.bytes ?? Number.POSITIVE_INFINITY) - (a.bytes ?? Number.POSITIVE_INFINITY))
      .map(({ name, bytes }) => `${name} ${formatBytes(bytes)}`);
    if (usedBytes !== null && unknownBytes !== 0) held.push(`nobody that Baton knows ${formatBytes(unknownBytes)}`);
    const listed = processes.map(({ name, pid, usedBytes: used }) => `${name} (${pid}) ${formatBytes(used)}`);
    return [
      `GPU ${gpu}: ${formatBytes(usedBytes)} of ${formatBytes(totalBytes)} in use`,
      held.length === 0 ? [] : `held by ${held.join(", ")}`,
      listed.length === 0 ? [] : `processes there: ${listed.join(", ")}`,
    ]
      .flat()
      .join("; ");
  }

  private gpu(index: number): Gpu {
    const gpu = this.gpus[index];
    if (gpu === undefined) throw new RangeError(`GPU ${index} of ${this.gpus.length}`);
    return gpu;
  }
}

function ownersOf(gpu: Gpu): Owner[] {
  const owners: Owner[] = [];
  if (gpu.training) owners.push({ name: `training of rank ${gpu.training.rank}`, bytes: gpu.training.bytes });
  if (gpu.engine) {
    const { engine, weightBytes, cacheBytes, awake } = gpu.engine;
    if (awake.has("weights")) owners.push({ name: `weights of engine ${engine}`, bytes: weightBytes });
    if (awake.has("kv_cache")) owners.push({ name: `cache of engine ${engine}`, bytes: cacheBytes });
    if (gpu.leftByEngineBytes !== null) {
      owners.push({ name: `engine ${engine} besides`, bytes: gpu.leftByEngineBytes });
    }
  }
  for (const [process, bytes] of gpu.contextBytes) owners.push({ name: `context of ${process}`, bytes });
  return owners;
}

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** `1.5 GiB`; "an unknown amount" for null. */
export function formatBytes(bytes: number | null): string {
  if (bytes === null) return "an unknown amount";
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${UNITS[unit]}`;
}
