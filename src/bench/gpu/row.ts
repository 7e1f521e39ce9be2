/** A row of the bench on a GPU: our figure, the peer's and the limit, cold and warm apart, and the goal. */
import { percentile } from "../row.js";

export type Direction = "lower" | "higher";

/** Of the cycles of one side. `first` is the cold one, and not among the others. */
export interface Spread {
  readonly first: number | null;
  readonly p50: number | null;
  readonly p95: number | null;
  readonly cycles: number;
}

export interface GpuRow {
  readonly subject: string;
  readonly shape: string;
  readonly metric: string;
  readonly unit: string;
  readonly better: Direction;
  /** null: the part failed, or did not run; `failure` says why. */
  readonly ours: Spread | null;
  /** What people use today. null: there is none, it failed (`note`), or the GPU is a stand-in. */
  readonly peer: Spread | null;
  /** What this machine allows, from the same process as ours. */
  readonly limit: number | null;
  /** peer / ours for times, ours / peer for rates: above 1, ours is better. Of the p50. */
  readonly ratioToPeer: number | null;
  readonly ratioToLimit: number | null;
  readonly goal: string | null;
  /** Where the goal is to be so many times as good as the peer. */
  readonly goalTimesPeer: number | null;
  /** null: there is no goal, or a figure that it needs is missing. */
  readonly met: boolean | null;
  /** How much is missing, where a goal is not met. */
  readonly missedBy: string | null;
  /** What is known of the reason, where a goal is not met. */
  readonly why: string | null;
  readonly simulated: boolean;
  readonly failure: string | null;
  readonly note: string;
}

/** What a goal looks at. */
export interface Compared {
  readonly ours: Spread;
  readonly peer: Spread | null;
  readonly limit: number | null;
  readonly ratioToPeer: number | null;
  readonly ratioToLimit: number | null;
}

/** A goal: its words, the figure it is about, and the bound. */
export interface Goal {
  readonly text: string;
  readonly value: (compared: Compared) => number | null;
  readonly atLeast?: number;
  readonly atMost?: number;
  readonly timesPeer?: number;
}

export const fasterThanPeer = (times: number): Goal => ({
  text: `${times} times the peer`,
  value: ({ ratioToPeer }) => ratioToPeer,
  atLeast: times,
  timesPeer: times,
});

export const asFastAsPeer: Goal = { ...fasterThanPeer(1), text: "as fast as the peer" };

export const ofTheLimit = (share: number): Goal => ({
  text: `${share} of the limit`,
  value: ({ ratioToLimit }) => ratioToLimit,
  atLeast: share,
});

export const atMost = (bound: number, text: string): Goal => ({ text, value: ({ ours }) => ours.p50, atMost: bound });

/** Cold and warm cycles: the first of the samples, and the others. */
export function spread(samples: readonly number[] | undefined, scale = 1): Spread | null {
  if (samples === undefined || samples.length === 0) return null;
  const [first, ...later] = samples.map((value) => value * scale);
  return {
    first: first ?? null,
    p50: later.length > 0 ? percentile(later, 0.5) : null,
    p95: later.length > 0 ? percentile(later, 0.95) : null,
    cycles: later.length,
  };
}

/** A figure that is taken once. */
export const once = (value: unknown, scale = 1): Spread | null =>
  typeof value === "number" ? { first: null, p50: value * scale, p95: null, cycles: 1 } : null;

export interface RowInput
  extends Omit<
    GpuRow,
    | "ratioToPeer"
    | "ratioToLimit"
    | "goal"
    | "goalTimesPeer"
    | "met"
    | "missedBy"
    | "why"
    | "failure"
    | "limit"
    | "peer"
  > {
  readonly peer?: Spread | null;
  readonly limit?: number | null;
  readonly goal?: Goal | null;
  /** Of a row that is known to miss its goal; kept only where it does. */
  readonly why?: string;
  readonly failure?: string | null;
}

/** Computes the ratios and whether the goal is met. On stand-in GPUs nothing is compared. */
export function gpuRow(input: RowInput): GpuRow {
  const { goal = null, failure = null, better, ours } = input;
  const peer = input.simulated ? null : (input.peer ?? null);
  const limit = input.simulated ? null : (input.limit ?? null);
  const ratio = (other: number | null): number | null => {
    const mine = ours?.p50 ?? null;
    if (other === null || mine === null || other <= 0 || mine <= 0) return null;
    return better === "lower" ? other / mine : mine / other;
  };
  const ratioToPeer = ratio(peer?.p50 ?? null);
  const ratioToLimit = ratio(limit);
  const value =
    goal === null || ours === null || input.simulated
      ? null
      : goal.value({ ours, peer, limit, ratioToPeer, ratioToLimit });
  const judged = goal === null || value === null ? null : judge(goal, value);
  return {
    ...input,
    peer,
    limit,
    ratioToPeer,
    ratioToLimit,
    goal: goal?.text ?? null,
    goalTimesPeer: goal?.timesPeer ?? null,
    met: judged?.met ?? null,
    missedBy: judged?.missedBy ?? null,
    why: judged?.met === false ? (input.why ?? null) : null,
    failure,
  };
}

function judge({ atLeast, atMost: most }: Goal, value: number): { met: boolean; missedBy: string | null } {
  const bound = atLeast ?? most ?? 0;
  const met = atLeast === undefined ? value <= bound : value >= bound;
  if (met) return { met, missedBy: null };
  const rounded = (number: number): string => String(Number(number.toPrecision(3)));
  return { met, missedBy: `${rounded(value)}, not ${rounded(bound)}` };
}
