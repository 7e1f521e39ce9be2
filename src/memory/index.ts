/** The memory of the GPUs, and the weights in it: who holds what, and whether it is what it should be. */
export { formatBytes, type GpuFigures, type GpuProcess, Ledger, type Owner, type ReleaseReport } from "./ledger.js";
export { checkPieces, elementBytes, manifestElements, manifestSignature, scratchBytes } from "./manifests.js";
export { type RankSums, verifyWeights, type WeightCheck, type WorkerSums } from "./weights.js";
