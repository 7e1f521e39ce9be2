/** A pool's pause and resume against plain copies of the same bytes. */
import { runPython } from "./processes.js";
import { type BenchRow, benchRow, percentile } from "./row.js";

const MIB = 256;
const ROUNDS = 20;
/** Of the limit. */
const GOAL = 0.9;

interface PoolRounds {
  readonly bytes: number;
  readonly simulated: boolean;
  readonly pauseSeconds: number[];
  readonly resumeSeconds: number[];
  readonly saveSeconds: number[];
  readonly loadSeconds: number[];
}

export async function benchPool(python: string, environment: Readonly<Record<string, string>>): Promise<BenchRow[]> {
  const rounds = (await runPython(
    python,
    "baton.bench.pool",
    ["0", String(MIB), String(ROUNDS)],
    environment,
  )) as PoolRounds;
  const rate = (seconds: readonly number[]): number => rounds.bytes / percentile(seconds, 0.5) / 1e9;
  const row = (metric: string, ours: readonly number[], peer: readonly number[], note: string): BenchRow =>
    benchRow({
      subject: `pool ${metric}`,
      metric: `${MIB} MiB live, p50`,
      unit: "GB/s",
      ours: rate(ours),
      peer: rate(peer),
      // Copying is all that cannot be avoided, so the peer is the limit too.
      limit: rate(peer),
      better: "higher",
      goal: GOAL,
      simulated: rounds.simulated,
      note,
    });
  return [
    row("pause", rounds.pauseSeconds, rounds.saveSeconds, "peer and limit: memcpy between two memory files"),
    row("resume", rounds.resumeSeconds, rounds.loadSeconds, "peer and limit: a new memory file and a memcpy into it"),
  ];
}
