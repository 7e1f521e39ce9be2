/** All facts of this machine. Whatever hangs has a deadline, so that this ends within a minute. */
import { randomBytes } from "node:crypto";
import { makeStandin, type Standin } from "../controller/standin.js";
import { standinFolder } from "../native.js";
import { collectHost } from "./collect-host.js";
import { askCuda, askNvml } from "./collect-probe.js";
import { collectPython, collectSoftware, collectTools } from "./collect-software.js";
import type { CudaFacts, Facts, Limit, NvmlFacts, ProbeEnd } from "./facts.js";

const MIB = 2 ** 20;

export interface Deadlines {
  readonly cudaMs: number;
  readonly nvmlMs: number;
  /** Of each of the two on stand-ins. */
  readonly standinMs: number;
  /** All interpreters together. */
  readonly pythonMs: number;
}
/** Less than a minute: NVML and CUDA one after the other, and Python and the compilers meanwhile. */
export const DEADLINES: Deadlines = { cudaMs: 34_000, nvmlMs: 20_000, standinMs: 12_000, pythonMs: 40_000 };

const STANDINS = { devices: 2, bytesPerDevice: 64 * MIB, granularityBytes: 2 * MIB };

export interface CollectOptions {
  readonly environment: NodeJS.ProcessEnv;
  readonly packageRoot: string;
  readonly folder: string;
  readonly version: string;
  readonly deadlines?: Partial<Deadlines>;
}

export async function collectFacts(options: CollectOptions): Promise<Facts> {
  const { environment } = options;
  const deadlines = { ...DEADLINES, ...options.deadlines };
  const software = collectSoftware(options.version);
  const host = await collectHost(environment);
  const python = collectPython(environment, options.packageRoot, options.folder, deadlines.pythonMs / 2);
  const tools = collectTools(environment);
  // NVML first: it would list the other probe among those who use the GPUs.
  const nvml = await askNvml(environment, deadlines.nvmlMs);
  const cuda = await askCuda(environment, registerBytes(host.limits.lockedBytes), deadlines.cudaMs);
  const gpus = whichGpus(cuda, nvml);
  const standin = gpus === "stand-in" ? await tryStandins(environment, deadlines.standinMs) : null;
  return {
    ...{ gpus, cuda, nvml, standin, host, software },
    python: await within(python, deadlines.pythonMs),
    tools: await tools,
  };
}

/** More than the limit of locked memory where that is small, so that it is seen whether the limit counts. */
export function registerBytes(lockedBytes: Limit): number {
  const least = 64 * MIB;
  if (typeof lockedBytes !== "number") return least;
  return Math.min(512 * MIB, Math.max(least, Math.ceil((2 * lockedBytes) / MIB) * MIB));
}

/** Real ones when a driver is there, also one that does not answer: stand-ins would hide that. */
export function whichGpus(
  cuda: Pick<CudaFacts, "driver" | "error" | "end">,
  nvml: Pick<NvmlFacts, "library" | "error" | "end">,
): Facts["gpus"] {
  if (nvml.library !== null) return !nvml.library.simulated && nvml.library.deviceCount > 0 ? "real" : "stand-in";
  if (cuda.driver !== null) return !cuda.driver.simulated && cuda.driver.deviceCount > 0 ? "real" : "stand-in";
  const sick = ({ how }: ProbeEnd): boolean => how === "deadline" || how === "crash";
  return sick(cuda.end) || sick(nvml.end) ? "real" : "stand-in";
}

async function tryStandins(environment: NodeJS.ProcessEnv, deadlineMs: number): Promise<Facts["standin"]> {
  let standin: Standin;
  try {
    // A table of its own, whatever the environment names: another run may use that one.
    const { BATON_STANDIN_TABLE: _, ...inherited } = environment;
    const faults = environment.BATON_STANDIN_FAULTS ?? null;
    const name = `doctor-${randomBytes(6).toString("hex")}`;
    standin = makeStandin(name, { ...STANDINS, folder: standinFolder(), faults }, inherited);
  } catch (error) {
    const end: ProbeEnd = { how: "missing", at: null, detail: (error as Error).message };
    return { cuda: nothing(end), nvml: { end, library: null, error: null, devices: [], pairs: [] } };
  }
  try {
    const inside = { ...environment, ...standin.environment };
    const nvml = await askNvml(inside, deadlineMs);
    return { nvml, cuda: await askCuda(inside, 16 * MIB, deadlineMs) };
  } finally {
    standin.remove();
  }
}

function nothing(end: ProbeEnd): CudaFacts {
  return { end, driver: null, error: null, devices: [], peers: [], contexts: [], roundTrips: [], register: null };
}

/** null when it takes longer. */
async function within<T>(promise: Promise<T>, deadlineMs: number): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, deadlineMs, null);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
