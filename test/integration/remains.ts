/** What is left of a run that was hit, and what it said. */
import { execFileSync } from "node:child_process";
import { existsSync, linkSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { type Baton, processesWith, root } from "./baton.js";

/** Everything is gone so long after a death. */
export const GONE_MS = 3_000;

export const nowMs = (): number => Number(process.hrtime.bigint()) / 1e6;

/** The table of a run's stand-in GPUs, and how many these are. */
function tableOf(baton: Baton): { path: string; gpus: number } {
  const [started] = eventsOf(baton.events(), "started");
  const name = readdirSync("/dev/shm").find((one) => one.endsWith(`-${started?.run}.standin`));
  if (started === undefined || name === undefined) throw new Error(`there is no table of run ${started?.run}`);
  return { path: join("/dev/shm", name), gpus: started.gpuBytes.length };
}

/** What a table says of the memory of each device. */
function usedBytes(table: string): number[] {
  const script = `
    import { openNvml } from ${JSON.stringify(join(root, "dist/native.js"))};
    const nvml = await openNvml(process.argv[1]);
    console.log(JSON.stringify(Array.from({ length: nvml.deviceCount }, (_, gpu) => nvml.memory(gpu).usedBytes)));`;
  const library = join(root, "build/Release/standin/libnvidia-ml.so.1");
  const text = execFileSync(process.execPath, ["--input-type=module", "-e", script, library], {
    env: { ...process.env, BATON_STANDIN_TABLE: table },
    encoding: "utf8",
  });
  return JSON.parse(text) as number[];
}

/** Waits until nothing of the run is left, other than `spared`. */
export async function allGone(folder: string, deadlineMs: number, spared = -1): Promise<void> {
  const end = nowMs() + deadlineMs;
  for (;;) {
    const left = processesWith(folder).filter((pid) => pid !== spared);
    if (left.length === 0) return;
    if (nowMs() > end) throw new Error(`still alive: ${left.join(", ")}`);
    await sleep(10);
  }
}

/** The error blocks of an output: lines that begin with a code. */
export function errorCodes(output: string): string[] {
  return [...output.matchAll(/^([A-Z][A-Z0-9_]{3,}): /gm)].map((match) => match[1] as string);
}

/** Kills the controller, and looks at what only it could look at. */
export async function controllerKilled(baton: Baton, folder: string): Promise<void> {
  // A second name of the table, since the first one goes with the run.
  const { path, gpus } = tableOf(baton);
  const kept = `${path}.kept`;
  linkSync(path, kept);
  try {
    const end = nowMs() + GONE_MS;
    process.kill(baton.pid, "SIGKILL");
    await baton.ended;
    await allGone(folder, GONE_MS);
    // A process that is being torn down has no environment to be found by any more, and still holds its memory: the
    // kernel takes away the one first.
    let used = usedBytes(kept);
    while (used.some((bytes) => bytes > 0) && nowMs() < end) used = usedBytes(kept);
    expect(used).toEqual(Array(gpus).fill(0));
    expect(existsSync(path), "the table of the stand-in GPUs").toBe(false);
    expect(
      readdirSync(folder).filter((name) => name.startsWith("baton-")),
      "the folder of the socket",
    ).toEqual([]);
  } finally {
    rmSync(kept);
  }
}
