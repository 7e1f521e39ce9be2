/** Runs of light ranks: real controller, sockets, pools and engine, without DeepSpeed; they start in seconds. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Baton, fixtures, root } from "./baton.js";

/** The interpreter that `npm test` has set up. */
export const python =
  process.env.BATON_PYTHON ?? [join(root, ".venv/bin/python")].find((path) => existsSync(path)) ?? "python3";

/** Where a node of several writes, in the folder of the run. */
export const partOf = (node: number): string => (node === 0 ? "" : `node-${node}`);

export interface LightOptions {
  readonly steps?: number;
  /** Before each answer of a rank, so that a phase lasts long enough to be met. */
  readonly pauseSeconds?: number;
  readonly ranks?: number;
  readonly engines?: number;
  readonly tensorParallel?: number;
  /** `key=value` of the recipe. */
  readonly set?: readonly string[];
  readonly words?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  /** Another command than the launcher of light ranks. */
  readonly command?: readonly string[];
  /** Where it writes, in the folder of the run. */
  readonly part?: string;
}

export function lightRun(folder: string, options: LightOptions = {}): Baton {
  const { ranks = 2, engines = 1, tensorParallel = 1 } = options;
  const set = [
    "engine.dtype=float32",
    "engine.maxModelLength=32",
    "engine.maxSequences=8",
    "checks.logprobSequences=0",
    ...(options.set ?? []),
  ].flatMap((pair) => ["--set", pair]);
  return new Baton(
    folder,
    [
      "run",
      ...["--model", join(fixtures, "light_model"), "--out", join(folder, "out"), "--log"],
      ...["--ranks", String(ranks), "--gpus", String(Math.max(ranks, engines * tensorParallel))],
      ...["--engines", String(engines), "--tp", String(tensorParallel), "--simulated", "64MiB"],
      ...set,
      ...(options.words ?? []),
      "--",
      ...(options.command ?? [python, join(fixtures, "light_launcher.py"), String(ranks)]),
    ],
    {
      BATON_PYTHON: python,
      LIGHT_MODEL: join(fixtures, "light_model"),
      LIGHT_STEPS: String(options.steps ?? 3),
      LIGHT_PAUSE_SECONDS: String(options.pauseSeconds ?? 0),
      ...options.environment,
    },
    join(folder, "out", options.part ?? ""),
  );
}

/** So many at once: more would time each other out on two cores. */
export function limited(most: number): <T>(work: () => Promise<T>) => Promise<T> {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (work) => {
    if (running >= most) await new Promise<void>((resolve) => waiting.push(resolve));
    running += 1;
    try {
      return await work();
    } finally {
      running -= 1;
      waiting.shift()?.();
    }
  };
}
