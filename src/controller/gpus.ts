/** The GPUs of a run: real ones, or stand-ins of its own. */
import { BatonError } from "../errors.js";
import { type Nvml, openNvml, type Sampler, standinFolder, startSampler } from "../native.js";
import type { Recipe } from "../recipe/schema.js";
import { makeStandin, type Standin } from "./standin.js";

/** 100 a second finds the peak of every phase that lasts 10 ms, at a cost that is not felt. */
const SAMPLES_A_SECOND = 100;

export interface Gpus {
  readonly nvml: Nvml;
  readonly sampler: Sampler;
  /** null: real GPUs. */
  readonly standin: Standin | null;
}

/**
 * NVML, its sampler, and the stand-ins when the recipe asks for them.
 *
 * @param undo gets what must be done when the run is over
 * @throws BatonError TOO_FEW_GPUS, DRIVER_NOT_FOUND, …
 */
export async function openGpus(
  recipe: Recipe,
  environment: NodeJS.ProcessEnv,
  run: string,
  undo: (() => void)[],
): Promise<Gpus> {
  let standin: Standin | null = null;
  const { simulated, count } = recipe.gpus;
  if (simulated !== null) {
    standin = makeStandin(
      run,
      {
        folder: standinFolder(),
        devices: count,
        bytesPerDevice: simulated.memoryBytes,
        granularityBytes: simulated.granularityBytes,
        faults: environment.BATON_STANDIN_FAULTS ?? null,
      },
      environment,
    );
    undo.push(standin.remove);
    standin.adopt();
  }
  const nvml = await openNvml(standin?.nvmlPath);
  undo.push(() => nvml.close());
  if (nvml.deviceCount < count) throw tooFewGpus(count, nvml.deviceCount);
  const sampler = await startSampler({
    hz: SAMPLES_A_SECOND,
    processHz: 0,
    ...(standin === null ? {} : { libraryPath: standin.nvmlPath }),
  });
  undo.push(() => sampler.stop());
  return { nvml, sampler, standin };
}

function tooFewGpus(expected: number, found: number): BatonError {
  return new BatonError({
    code: "TOO_FEW_GPUS",
    message: "This machine has fewer GPUs than the recipe asks for.",
    expected: `${expected} GPUs`,
    found: `${found}`,
    action: "Lower gpus.count in the recipe, or set gpus.simulated to try it on stand-in GPUs.",
  });
}
