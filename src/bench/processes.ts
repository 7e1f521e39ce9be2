/** Starts the Python processes of a benchmark and reads the JSON line that each of them prints. */
import { spawn } from "node:child_process";
import { BatonError } from "../errors.js";
import { pythonPath } from "../native.js";

const DEADLINE_MS = 180_000;

/**
 * Runs `python -m module arguments` and gives the last line of its output, parsed.
 *
 * @throws BatonError BENCH_PROCESS_FAILED when it exits otherwise than with 0, or not within 180 s
 */
export function runPython(
  python: string,
  module: string,
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const path = [pythonPath(), process.env.PYTHONPATH].filter((part) => part !== undefined).join(":");
    const child = spawn(python, ["-m", module, ...args], {
      env: { ...process.env, OMP_NUM_THREADS: "1", PYTHONPATH: path, ...environment },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: DEADLINE_MS,
      killSignal: "SIGKILL",
    });
    let output = "";
    let errors = "";
    child.stdout.on("data", (chunk: Buffer) => {
      output += chunk.toString();
    });
    child.stderr.on("data", (chunk: Buffer) => {
      errors = (errors + chunk.toString()).slice(-4000);
    });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      const line = output.trim().split("\n").at(-1) ?? "";
      if (code === 0 && line !== "") {
        resolve(JSON.parse(line));
        return;
      }
      reject(
        new BatonError({
          code: "BENCH_PROCESS_FAILED",
          message: `${module} ${args.join(" ")} did not finish`,
          expected: "exit code 0 and one JSON line",
          found: `${signal ?? `exit code ${code}`}: ${errors.trim().split("\n").at(-1) ?? ""}`,
          action: `Run it by hand: ${python} -m ${module} ${args.join(" ")}`,
        }),
      );
    });
  });
}

export interface Rounds {
  readonly seconds: readonly number[];
}

/** The peers: one process a rank of torch.distributed over gloo; the rounds as all of them see them. */
export async function gloo(
  python: string,
  folder: string,
  what: "barrier" | "gather",
  world: number,
  rounds: number,
  ...rest: number[]
): Promise<readonly number[]> {
  const store = `${folder}/gloo-${what}`;
  const ranks = Array.from({ length: world }, (_, rank) =>
    runPython(python, "baton.bench.gloo_peer", [what, rank, world, store, rounds, ...rest].map(String)),
  );
  return ((await Promise.all(ranks)) as Rounds[]).flatMap(({ seconds }) => [...seconds]);
}
