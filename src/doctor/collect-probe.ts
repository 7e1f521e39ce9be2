/** Asks the drivers through `baton-probe`, which may hang or crash: it is a process of its own with a deadline. */
import { spawn } from "node:child_process";
import { probePath } from "../native.js";
import type { CudaDevice, CudaFacts, NvmlDevice, NvmlFacts, NvmlPair, ProbeEnd, RoundTrip } from "./facts.js";

type Lines = readonly Readonly<Record<string, unknown>>[];

export interface ProbeRun {
  readonly lines: Lines;
  readonly end: ProbeEnd;
}

/** Runs the probe and gives what it had said when it ended, or was ended. */
export function runProbe(
  words: readonly string[],
  environment: NodeJS.ProcessEnv,
  deadlineMs: number,
): Promise<ProbeRun> {
  let program: string;
  try {
    program = probePath();
  } catch (error) {
    return Promise.resolve({ lines: [], end: { how: "missing", at: null, detail: (error as Error).message } });
  }
  return new Promise((resolve) => {
    const child = spawn(program, words, { env: environment, stdio: ["ignore", "pipe", "ignore"] });
    let text = "";
    const finish = (how: ProbeEnd["how"], detail: string): void => {
      clearTimeout(timer);
      const lines = parseLines(text);
      const at = lines.findLast((line) => typeof line.at === "string")?.at ?? null;
      resolve({ lines, end: { how, at: at as string | null, detail } });
    };
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      // A process inside a driver that hangs in the kernel does not die: it must not keep this one.
      child.stdout.destroy();
      child.unref();
      finish("deadline", `no end after ${deadlineMs / 1000} s`);
    }, deadlineMs);
    child.stdout.on("data", (data: Buffer) => {
      text += data.toString();
    });
    child.once("error", (error) => finish("missing", error.message));
    child.once("close", (code, signal) => {
      if (signal !== null) finish("crash", `ended by ${signal}`);
      else if (code !== 0) finish("crash", `exit status ${code}`);
      else finish("done", "");
    });
  });
}

/** Whole lines only: the last may be cut short. */
function parseLines(text: string): Lines {
  return text.split("\n").flatMap((line) => {
    try {
      return [JSON.parse(line) as Readonly<Record<string, unknown>>];
    } catch {
      return [];
    }
  });
}

/** Every value of this name, in order. */
const all = <T>(lines: Lines, name: string): T[] => lines.flatMap((line) => (name in line ? [line[name] as T] : []));

/** `{…}` or `{error}`, as two fields. */
function opened<T>(lines: Lines, name: string): { value: T | null; error: CudaFacts["error"] } {
  const [first] = all<T & { error?: NonNullable<CudaFacts["error"]> }>(lines, name);
  if (first === undefined) return { value: null, error: null };
  return first.error === undefined ? { value: first, error: null } : { value: null, error: first.error };
}

export async function askCuda(
  environment: NodeJS.ProcessEnv,
  registerBytes: number,
  deadlineMs: number,
): Promise<CudaFacts> {
  const { lines, end } = await runProbe(["cuda", String(registerBytes)], environment, deadlineMs);
  const { value, error } = opened<NonNullable<CudaFacts["driver"]>>(lines, "cuda");
  return {
    end,
    driver: value,
    error,
    devices: all<CudaDevice>(lines, "device"),
    peers: all<CudaFacts["peers"][number]>(lines, "peer"),
    contexts: all<CudaFacts["contexts"][number]>(lines, "context"),
    roundTrips: all<RoundTrip>(lines, "roundTrip"),
    register: all<NonNullable<CudaFacts["register"]>>(lines, "register")[0] ?? null,
  };
}

export async function askNvml(environment: NodeJS.ProcessEnv, deadlineMs: number): Promise<NvmlFacts> {
  const { lines, end } = await runProbe(["nvml"], environment, deadlineMs);
  const { value, error } = opened<NonNullable<NvmlFacts["library"]>>(lines, "nvml");
  return {
    end,
    library: value,
    error,
    devices: all<NvmlDevice>(lines, "device"),
    pairs: all<NvmlPair>(lines, "pair"),
  };
}
