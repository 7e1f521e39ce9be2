/** What a generated run is like: its shape, its memory, what its ranks do, and what goes wrong in it. */
import fc from "fast-check";

/** Something that goes wrong. `turn`: how many events have happened when it does, at the earliest. */
export type Fault =
  | { readonly kind: "none" }
  /** The process is killed: it does nothing more; pidfd and connection say so in any order. */
  | { readonly kind: "die"; readonly client: number; readonly turn: number }
  /** The process is stopped: it does nothing more, and nothing says so. */
  | { readonly kind: "hang"; readonly client: number; readonly turn: number }
  /** The connection ends, the process lives. */
  | { readonly kind: "disconnect"; readonly client: number; readonly turn: number }
  /** The client reports that it failed. */
  | { readonly kind: "fail"; readonly client: number; readonly turn: number }
  | { readonly kind: "interrupt"; readonly turn: number }
  | { readonly kind: "launcherExit"; readonly code: number; readonly turn: number }
  /** A deadline passes although everybody is at work. */
  | { readonly kind: "deadline"; readonly turn: number }
  /** The client says something that is not its turn. */
  | { readonly kind: "unasked"; readonly client: number; readonly what: number; readonly turn: number }
  /** The n-th message of this kind is not as it must be. */
  | { readonly kind: Corruption; readonly nth: number }
  /** NVML cannot tell. */
  | { readonly kind: "unknownMemory" };

export const CORRUPTIONS = [
  "wrongSeq",
  "wrongEpochArrived",
  "olderEpochArrived",
  "wrongCall",
  "extraCall",
  "missingCall",
  "otherManifest",
  "staleGenerated",
  "staleSynced",
  "compareDiffers",
  "checksumDiffers",
  "logprobTooFar",
  "secondArrive",
  "earlyGoodbye",
  "wrongGpu",
  "wrongWorldSize",
] as const;
export type Corruption = (typeof CORRUPTIONS)[number];

export interface Scenario {
  readonly engines: number;
  readonly tensorParallel: number;
  readonly ranks: number;
  readonly zeroStage: 2 | 3;
  readonly release: "all" | "needed";
  readonly weights: "every" | "first" | "off";
  readonly compareFirst: boolean;
  /** Bytes of each GPU, and of what may lie on it. */
  readonly gpuBytes: number;
  readonly parameterBytes: number;
  readonly optimizerBytes: number;
  readonly weightBytes: number;
  readonly cacheBytes: number;
  /** Each rollout: calls of generate, optimizer steps before it, whether manifests are sent again before it. */
  readonly rollouts: readonly { readonly calls: number; readonly steps: number; readonly attach: boolean }[];
  readonly fault: Fault;
  /** A process that does something only when nobody else can; null: none. */
  readonly laggard: number | null;
  /** Decides the order of everything that may happen in any order. */
  readonly seed: number;
}

const turn = fc.nat(200);
const client = fc.nat(40);
const fault: fc.Arbitrary<Fault> = fc.oneof(
  { weight: 6, arbitrary: fc.constant({ kind: "none" } as const) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("die" as const), client, turn }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("hang" as const), client, turn }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("disconnect" as const), client, turn }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("fail" as const), client, turn }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("interrupt" as const), turn }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("launcherExit" as const), code: fc.nat(2), turn }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("deadline" as const), turn }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("unasked" as const), client, what: fc.nat(30), turn }) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constantFrom(...CORRUPTIONS), nth: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.constant({ kind: "unknownMemory" } as const) },
);

/** [engines, tensorParallel, ranks]; more engines' GPUs than ranks, and the other way round, among them. */
const shape = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.constantFrom([1, 1, 1], [1, 2, 2], [2, 1, 2], [1, 1, 2], [2, 1, 4], [1, 3, 2], [2, 2, 2]),
  },
  { weight: 3, arbitrary: fc.constantFrom([2, 2, 4], [3, 1, 3], [2, 1, 6], [1, 4, 4]) },
  { weight: 1, arbitrary: fc.constant([2, 4, 8]) },
);

export const scenario: fc.Arbitrary<Scenario> = fc
  .record({
    shape,
    zeroStage: fc.constantFrom(2 as const, 3 as const),
    release: fc.constantFrom("all" as const, "needed" as const),
    weights: fc.constantFrom("every" as const, "first" as const, "off" as const),
    compareFirst: fc.boolean(),
    parameterBytes: fc.integer({ min: 1, max: 4 }),
    optimizerBytes: fc.nat(8),
    weightBytes: fc.integer({ min: 1, max: 4 }),
    cacheBytes: fc.integer({ min: 1, max: 6 }),
    // Above what either side needs alone; less than what the sync needs now and then.
    slackBytes: fc.nat(6),
    rollouts: fc.array(
      fc.record({ calls: fc.nat(2), steps: fc.nat(2), attach: fc.integer({ min: 0, max: 4 }).map((n) => n === 0) }),
      { maxLength: 3 },
    ),
    fault,
    laggard: fc.option(client, { freq: 2 }),
    seed: fc.integer(),
  })
  .map(({ shape: [engines, tensorParallel, ranks], slackBytes, ...rest }) => ({
    ...rest,
    engines: engines as number,
    tensorParallel: tensorParallel as number,
    ranks: ranks as number,
    gpuBytes: Math.max(rest.parameterBytes + rest.optimizerBytes, rest.weightBytes + rest.cacheBytes) + slackBytes,
  }));
