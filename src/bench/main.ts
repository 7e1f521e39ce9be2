/** `baton bench`: every subject with its peer and its limit, one after another, in one run. */
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { hasNvidiaDriver } from "../cli/gpus.js";
import { packageRoot, packageVersion } from "../cli/package.js";
import { findPython } from "../cli/python.js";
import { makeStandin, type Standin } from "../controller/standin.js";
import { libbatonPath, standinFolder } from "../native.js";
import { benchBarrier } from "./barrier.js";
import { benchGather } from "./gather.js";
import { checkJsonFile, writeJsonFile } from "./json-file.js";
import { benchPool } from "./pool.js";
import { type BenchRow, formatRows, type Subject } from "./row.js";
import { benchSampler } from "./sampler.js";

const STANDIN_GPUS = 8;
const STANDIN_BYTES = 2 ** 30;

export interface BenchOptions {
  /** Where the rows go as JSON; null: only the table is printed. */
  readonly jsonFile: string | null;
  readonly subjects: readonly Subject[];
}

/** Measures and prints the table. */
export async function bench({ jsonFile, subjects }: BenchOptions): Promise<void> {
  if (jsonFile !== null) checkJsonFile(jsonFile);
  const rows = await measureControl(subjects);
  process.stdout.write(`${controlHeading()}\n\n`);
  process.stdout.write(formatRows(rows));
  if (jsonFile !== null) writeJsonFile(jsonFile, rows);
}

/** The machine and the versions of the subjects that need no GPU. */
export function controlHeading(): string {
  const machine = `${cpus().length} x ${cpus()[0]?.model ?? "unknown CPU"}`;
  return `gpu-baton ${packageVersion()}, Node.js ${process.version}, ${machine}`;
}

/** The rows of the subjects that need no GPU. */
export async function measureControl(subjects: readonly Subject[]): Promise<BenchRow[]> {
  const python = await findPython(["torch", "numpy", "msgspec", "pynvml"], process.env, packageRoot, process.cwd());
  const folder = mkdtempSync(join(tmpdir(), "baton-bench-"));
  let standin: Standin | null = null;
  try {
    standin = (await hasNvidiaDriver()) ? null : benchStandin();
    standin?.adopt();
    const environment = { BATON_LIBRARY: libbatonPath(), ...standin?.environment };
    const measure: Readonly<Record<Subject, () => Promise<BenchRow[]>>> = {
      barrier: () => benchBarrier(python.path, folder),
      gather: () => benchGather(python.path, folder),
      pool: () => benchPool(python.path, environment),
      sampler: () => benchSampler(python.path, standin?.nvmlPath, environment),
    };
    const rows: BenchRow[] = [];
    for (const subject of subjects) {
      process.stderr.write(`measuring: ${subject}\n`);
      rows.push(...(await measure[subject]()));
    }
    return rows;
  } finally {
    standin?.remove();
    rmSync(folder, { recursive: true, force: true });
  }
}

function benchStandin(): Standin {
  return makeStandin(
    `bench-${process.pid}`,
    {
      folder: standinFolder(),
      devices: STANDIN_GPUS,
      bytesPerDevice: STANDIN_BYTES,
      granularityBytes: 2 << 20,
      faults: null,
    },
    process.env,
  );
}
