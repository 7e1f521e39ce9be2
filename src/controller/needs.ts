/** Whether the GPUs are large enough, once engines and ranks have said what they need. */
import { elementBytes } from "../memory/index.js";
import type { Nvml } from "../native.js";
import { engineOnGpu, type PhaseConfig } from "../phases/index.js";
import { u32s, u64s } from "../protocol/arrays.js";
import type { Failure, Manifest } from "../protocol/messages.js";
import { checkGpuSize } from "../recipe/index.js";

/** The first GPU that is too small, or null. Rank r is on GPU r. */
export function checkGpus(
  config: PhaseConfig,
  ranks: readonly { readonly rank: number; readonly manifest: Manifest }[],
  engines: ReadonlyMap<number, { readonly weightBytes: number; readonly cacheBytes: number }>,
  nvml: Pick<Nvml, "memory" | "simulated">,
): { readonly gpu: number; readonly failure: Failure } | null {
  for (const { rank, manifest } of ranks) {
    const engine = engineOnGpu(config, rank);
    const bytes = engine === null ? undefined : engines.get(engine);
    const failure = checkGpuSize({
      gpu: rank,
      totalBytes: nvml.memory(rank).totalBytes,
      segmentBytes: manifest.segmentBytes,
      simulated: nvml.simulated,
      weightBytes: bytes?.weightBytes ?? 0,
      cacheBytes: bytes?.cacheBytes ?? 0,
      stateBytes: manifest.stateBytes,
      parameterBytes: pieceBytes(manifest),
    });
    if (failure !== null) return { gpu: rank, failure };
  }
  return null;
}

/** Bytes of the policy's weights that a rank holds itself. */
function pieceBytes(manifest: Manifest): number {
  const tensors = u32s(manifest.pieceTensor, "manifest.pieceTensor");
  const elements = u64s(manifest.pieceElements, "manifest.pieceElements");
  return tensors.reduce((sum, tensor, piece) => {
    return sum + Number(elements[piece] ?? 0n) * elementBytes(manifest, tensor);
  }, 0);
}
