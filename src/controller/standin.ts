/** GPUs that are not there: what a process needs in its environment to see the stand-ins, and their shared table. */
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { BatonError } from "../errors.js";
import { ownedName } from "./ownership.js";

export interface StandinOptions {
  /** Folder with the stand-in libcuda.so.1 and libnvidia-ml.so.1. */
  readonly folder: string;
  readonly devices: number;
  readonly bytesPerDevice: number;
  readonly granularityBytes: number;
  /** Fault rules for the stand-in driver; null: none. */
  readonly faults: string | null;
}

export interface Standin {
  /** The stand-in libnvidia-ml, for the controller's own NVML. */
  readonly nvmlPath: string;
  readonly environment: Readonly<Record<string, string>>;
  /** The table, unless the user named one: then others may use it too. */
  readonly files: readonly string[];
  /** Lets the stand-in NVML of this process find the table too. */
  adopt(): void;
  /** Removes the table: with the last process the devices are gone. */
  remove(): void;
}

/** Where tables are made. */
export function sharedMemoryFolder(): string {
  return existsSync("/dev/shm") ? "/dev/shm" : "/tmp";
}

/**
 * Stand-in GPUs of their own for one run.
 *
 * @throws BatonError STANDIN_MISSING when the libraries are not where they should be
 */
export function makeStandin(run: string, options: StandinOptions, inherited: NodeJS.ProcessEnv): Standin {
  const nvmlPath = join(options.folder, "libnvidia-ml.so.1");
  for (const path of [nvmlPath, join(options.folder, "libcuda.so.1")]) {
    if (existsSync(path)) continue;
    throw new BatonError({
      code: "STANDIN_MISSING",
      message: "The stand-in GPUs are not built.",
      expected: path,
      found: "no such file",
      action: "Run `npm run build` (in a checkout) or install gpu-baton again.",
    });
  }
  const shared = sharedMemoryFolder();
  const named = inherited.BATON_STANDIN_TABLE ?? null;
  const table = named ?? join(shared, `${ownedName(run)}.standin`);
  const loaderPath = inherited.LD_LIBRARY_PATH;
  const environment: Record<string, string> = {
    LD_LIBRARY_PATH: loaderPath ? `${options.folder}:${loaderPath}` : options.folder,
    // PyTorch and accelerate must not take the stand-ins for a CUDA that they can use.
    CUDA_VISIBLE_DEVICES: "",
    DS_ACCELERATOR: "cpu",
    OMP_NUM_THREADS: inherited.OMP_NUM_THREADS ?? "1",
    BATON_STANDIN_TABLE: table,
    BATON_STANDIN_DEVICES: String(options.devices),
    BATON_STANDIN_BYTES: String(options.bytesPerDevice),
    BATON_STANDIN_GRANULARITY: String(options.granularityBytes),
  };
  if (options.faults !== null) environment.BATON_STANDIN_FAULTS = options.faults;
  const adopt = (): void => {
    for (const [key, value] of Object.entries(environment)) {
      if (key.startsWith("BATON_STANDIN_")) process.env[key] = value;
    }
  };
  const files = named === null ? [table] : [];
  const remove = (): void => {
    for (const file of files) rmSync(file, { force: true });
  };
  return { nvmlPath, environment, files, adopt, remove };
}
