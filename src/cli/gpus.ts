/** Whether this machine has GPUs of its own. */
import { openNvml } from "../native.js";

/** false also where the addon cannot be loaded: then there is nothing to run on a GPU either. */
export async function hasNvidiaDriver(): Promise<boolean> {
  try {
    const nvml = await openNvml();
    const found = !nvml.simulated && nvml.deviceCount > 0;
    nvml.close();
    return found;
  } catch {
    return false;
  }
}
