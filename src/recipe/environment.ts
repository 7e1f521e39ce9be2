/** Settings in the environment that a run on real GPUs cannot work with. Nothing is probed: only the text is read. */
import type { Failure } from "../protocol/messages.js";

type Environment = Readonly<Record<string, string | undefined>>;

/** Both names: torch reads the second since 2.9, and the first still. */
const ALLOCATOR_SETTINGS = ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"] as const;

/** The first setting that would stop a run on real GPUs, or null. */
export function checkEnvironment(environment: Environment): Failure | null {
  return checkExpandableSegments(environment) ?? checkVisibleDevices(environment);
}

/** Torch's expandable segments go past every pool, and cannot be exported. */
export function checkExpandableSegments(environment: Environment): Failure | null {
  for (const name of ALLOCATOR_SETTINGS) {
    const value = environment[name] ?? "";
    if (!value.replaceAll(" ", "").toLowerCase().includes("expandable_segments:true")) continue;
    return {
      code: "EXPANDABLE_SEGMENTS",
      message: "Torch is told to use expandable segments, which go past the training memory.",
      expected: `${name} without expandable_segments:True`,
      found: `${name}=${value}`,
      action: `Remove it from the environment: unset ${name}`,
    };
  }
  return null;
}

/**
 * Which GPUs CUDA shows. vLLM needs numbers; and GPU n of a recipe is NVML's GPU n, so a selection that moves the
 * numbers would have the room measured on another GPU than the one that is used.
 */
export function checkVisibleDevices(environment: Environment): Failure | null {
  const value = environment.CUDA_VISIBLE_DEVICES;
  if (value === undefined) return null;
  const found = `CUDA_VISIBLE_DEVICES=${value}`;
  const names = value.split(",").map((name) => name.trim());
  if (value.trim() === "" || names[0] === "-1") {
    return {
      code: "NO_VISIBLE_DEVICES",
      message: "CUDA_VISIBLE_DEVICES hides every GPU.",
      expected: "CUDA_VISIBLE_DEVICES not set, or numbers from 0",
      found,
      action: "unset CUDA_VISIBLE_DEVICES, or set gpus.simulated to run on stand-in GPUs.",
    };
  }
  if (names.some((name) => !/^\d+$/.test(name))) {
    return {
      code: "BAD_DEVICES",
      message: "vLLM needs numbers in CUDA_VISIBLE_DEVICES.",
      expected: "whole numbers with commas between them",
      found,
      action: "Name the GPUs by their numbers, not by UUID.",
    };
  }
  if (names.some((name, place) => Number(name) !== place)) {
    return {
      code: "DEVICES_RENUMBERED",
      message: "CUDA_VISIBLE_DEVICES changes the numbers of the GPUs, and NVML's stay as they are.",
      expected: "0, 1, 2, … in this order",
      found,
      action: "Unset it and use the first GPUs, or give the process (its container) only the GPUs that it shall use.",
    };
  }
  return null;
}
