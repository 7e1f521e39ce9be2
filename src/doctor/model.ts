/** Whether a model fits: its training state and an engine on each GPU, its arenas in host memory. */
import { type Dtype, ELEMENT_BYTES } from "../protocol/dtypes.js";
import { checkGpuSize, checkHeads, type ModelConfig } from "../recipe/index.js";
import { shortBytes } from "../report/figures.js";
import type { Facts } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";
import { availableHostBytes } from "./host.js";
import type { ModelShape } from "./parameters.js";

const { ok, warning, problem, unknown } = findingsOf("model");

const MIB = 2 ** 20;
/** Adam's two moments, in fp32. */
const MOMENT_BYTES = 8;
const MASTER_BYTES = 4;
/** Tokens of a block of vLLM's cache. */
const BLOCK_TOKENS = 16;
/** Memory of the host that a rank or a worker takes beside its arena, with torch and DeepSpeed imported. */
const PROCESS_BYTES = 700 * MIB;

export interface ModelPlan {
  readonly folder: string;
  readonly config: ModelConfig;
  readonly shape: ModelShape;
  readonly ranks: number;
  readonly zero: 1 | 2 | 3;
  readonly tensorParallel: number;
  readonly dtype: Dtype;
  readonly maxModelLength: number;
  readonly maxSequences: number;
}

/** Bytes that a run of the plan needs, each for one rank or one worker. */
export interface Needs {
  /** What a rank holds of the weights. */
  readonly parameterBytes: number;
  /** Weights, masters and moments of a rank. */
  readonly stateBytes: number;
  readonly arenaBytes: number;
  readonly weightBytes: number;
  readonly cacheBytes: number;
}

/** As `TrainingMemory.arena_bytes_needed` and `cache_bytes` of the vLLM adapter compute them, for full fine-tuning. */
export function needsOf(plan: Omit<ModelPlan, "folder" | "config">, parameters: number): Needs {
  const { ranks, zero, tensorParallel, shape } = plan;
  const element = ELEMENT_BYTES[plan.dtype];
  const held = zero === 3 ? Math.ceil(parameters / ranks) : parameters;
  const trained = Math.ceil(parameters / ranks);
  const parameterBytes = held * element;
  const masters = plan.dtype === "float32" && zero === 3 ? 0 : MASTER_BYTES;
  const stateBytes = parameterBytes + trained * (masters + MOMENT_BYTES);
  // ZeRO-3 keeps the buffer of its gradients' partitions.
  const live = stateBytes + (zero === 3 ? trained * element : 0);
  const arenaBytes = Math.ceil((live + live / 16 + 8 * MIB) / (2 * MIB)) * 2 * MIB;
  const heads = Math.max(1, Math.floor(shape.kvHeads / tensorParallel));
  const block = 2 * heads * shape.headSize * BLOCK_TOKENS * element * shape.layers;
  const blocks = plan.maxSequences * (Math.ceil(plan.maxModelLength / BLOCK_TOKENS) + 1) + 1;
  return {
    parameterBytes,
    stateBytes,
    arenaBytes,
    weightBytes: Math.ceil((parameters * element) / tensorParallel),
    cacheBytes: block * blocks,
  };
}

export function judgeModel(facts: Pick<Facts, "gpus" | "nvml" | "host">, plan: ModelPlan): Finding[] {
  const heads = checkHeads(plan.config, plan.tensorParallel);
  const findings = heads === null ? [] : [problem(heads.code, { ...heads })];
  const { parameters, source } = plan.shape;
  if (parameters === null) {
    const found = "neither safetensors nor an architecture that can be counted (Llama, Mistral, Qwen2, Qwen3)";
    return [
      ...findings,
      unknown("MODEL_SIZE", "The model's size is not known.", found, "Put its weights into the folder."),
    ];
  }
  const needs = needsOf(plan, parameters);
  const size = `${parameters.toLocaleString("en")} parameters (from ${source})`;
  const split = `${plan.ranks} ${plan.ranks === 1 ? "rank" : "ranks"}, ZeRO-${plan.zero}`;
  findings.push(ok("MODEL_SIZE", `${plan.folder} is a model of ${size}; ${split}.`, needsWords(needs)));
  return [...findings, ...onGpus(facts, plan, needs), onHost(facts, plan, needs)];
}

const needsWords = (needs: Needs): string =>
  `a rank: state ${shortBytes(needs.stateBytes)} (parameters ${shortBytes(needs.parameterBytes)}), arena ` +
  `${shortBytes(needs.arenaBytes)}; a worker: weights ${shortBytes(needs.weightBytes)}, cache ${shortBytes(needs.cacheBytes)}`;

function onGpus({ gpus, nvml }: Pick<Facts, "gpus" | "nvml">, plan: ModelPlan, needs: Needs): Finding[] {
  if (gpus === "stand-in") {
    return [ok("GPU_TOO_SMALL", "Stand-in GPUs are as large as the recipe makes them (host memory, all of it).")];
  }
  const findings: Finding[] = [];
  if (nvml.library !== null && nvml.devices.length < plan.ranks) {
    findings.push(
      problem("TOO_FEW_GPUS", {
        message: "This machine has fewer GPUs than ranks.",
        expected: `${plan.ranks} GPUs`,
        found: `${nvml.devices.length}`,
        action: "Lower --ranks.",
      }),
    );
  }
  const sizes = nvml.devices
    .slice(0, plan.ranks)
    .flatMap(({ index, totalBytes }) => (totalBytes === undefined ? [] : [{ gpu: index, totalBytes }]));
  if (sizes.length === 0)
    return [...findings, unknown("GPU_TOO_SMALL", "The GPUs' sizes are not known.", "NVML does not tell")];
  const failure = sizes
    .map((size) => checkGpuSize({ ...size, ...needs, segmentBytes: 1, simulated: false }))
    .find((each) => each !== null);
  if (failure !== undefined) return [...findings, problem(failure.code, { ...failure })];
  const found = `${shortBytes(Math.min(...sizes.map(({ totalBytes }) => totalBytes)))} a GPU; activations come on top`;
  return [...findings, ok("GPU_TOO_SMALL", "Training state and engine each fit a GPU in turn.", found)];
}

/** Every rank's arena is in the memory of the host at once. */
function onHost({ gpus, host }: Pick<Facts, "gpus" | "host">, plan: ModelPlan, needs: Needs): Finding {
  const arenas = needs.arenaBytes * plan.ranks;
  const processes = PROCESS_BYTES * 2 * plan.ranks;
  // A stand-in GPU's memory is the host's: state and engine, never both whole at once.
  const standins = gpus === "real" ? 0 : Math.max(needs.stateBytes, needs.weightBytes + needs.cacheBytes) * plan.ranks;
  const wanted = arenas + standins;
  const available = availableHostBytes(host);
  const found = available === null ? "" : `${shortBytes(available)} can be had`;
  const sum = `${shortBytes(arenas)} for ${plan.ranks} arenas${standins === 0 ? "" : `, ${shortBytes(standins)} for stand-in GPUs`}`;
  const words = `${sum}, and about ${shortBytes(processes)} for processes`;
  if (available === null) return unknown("HOST_TOO_SMALL", "Whether the host's memory is enough is not known.", words);
  const action =
    "Use ZeRO-2 or 3, a smaller model, fewer ranks, or a machine (a limit of its control group) with more memory.";
  if (wanted > available) {
    return problem("HOST_TOO_SMALL", {
      message: "The host's memory cannot hold what a handoff puts there.",
      expected: words,
      found,
      action,
    });
  }
  if (wanted + processes > available) {
    return warning("HOST_TOO_SMALL", {
      message: "The host's memory holds the arenas, but hardly the processes beside them.",
      expected: words,
      found,
      action,
    });
  }
  return ok("HOST_TOO_SMALL", "The arenas of all ranks fit the host's memory.", `${words}; ${found}`);
}
