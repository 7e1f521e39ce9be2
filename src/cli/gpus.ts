/** Whether this machine has GPUs of its own. */
import { openNvml } from "../native.js";

/** The GPUs that this machine's own driver shows; null where there is no driver, or the addon cannot be loaded. */
export async function machineGpus(): Promise<number | null> {
  try {
    const nvml = await openNvml();
    const found = nvml.simulated ? null : nvml.deviceCount;
    nvml.close();
    return found;
  } catch {
    return null;
  }
}

/** false also where the addon cannot be loaded: then there is nothing to run on a GPU either. */
export async function hasNvidiaDriver(): Promise<boolean> {
  return ((await machineGpus()) ?? 0) > 0;
}
