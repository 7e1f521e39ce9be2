/** What reading every GPU's memory 1,000 times a second costs, against nvidia-ml-py in a Python loop. */
import { setTimeout as sleep } from "node:timers/promises";
import { startSampler } from "../native.js";
import { runPython } from "./processes.js";
import { type BenchRow, benchRow } from "./row.js";

const HZ = 1000;
const SECONDS = 3;
/** Of one core, for each GPU. */
const LIMIT_PERCENT = 2;

export async function benchSampler(
  python: string,
  nvmlPath: string | undefined,
  environment: Readonly<Record<string, string>>,
): Promise<BenchRow[]> {
  const sampler = await startSampler({
    hz: HZ,
    processHz: 2,
    ...(nvmlPath === undefined ? {} : { libraryPath: nvmlPath }),
  });
  const before = sampler.cost();
  await sleep(SECONDS * 1000);
  const after = sampler.cost();
  const { simulated, deviceCount } = sampler;
  sampler.stop();
  const percent = (Number(after.cpuNs - before.cpuNs) / Number(after.wallNs - before.wallNs) / deviceCount) * 100;
  const rate = (after.samples - before.samples) / (Number(after.wallNs - before.wallNs) / 1e9);
  const peer = (await runPython(python, "baton.bench.nvml_peer", [String(HZ), String(SECONDS)], environment)) as {
    cpuPercentPerGpu: number;
  };
  return [
    benchRow({
      subject: "sampler",
      metric: `CPU per GPU at ${Math.round(rate)} samples a second`,
      unit: "% of a core",
      ours: percent,
      peer: peer.cpuPercentPerGpu,
      limit: LIMIT_PERCENT,
      better: "lower",
      goal: 1,
      simulated,
      why: "the time is the driver's: the peer makes the same calls",
      note: `memory totals of ${deviceCount} GPUs, process lists at 2 Hz; limit: the goal; peer: the same calls by nvidia-ml-py`,
    }),
  ];
}
