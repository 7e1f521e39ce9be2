/** `accelerate launch` with the configuration files that people have, and an `Accelerator` in the script. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Baton, fixtures, withFolder } from "./baton.js";
import { writeModel } from "./deepspeed.js";
import { python } from "./light.js";
import { errorCodes } from "./remains.js";

const ALL = process.env.BATON_ALL_RECIPES === "1";
const RANKS = 2;
/** Without a word on buckets DeepSpeed takes 5e8 elements, which for ZeRO-3 is 1 GB of each GPU. */
const GPU = "2GiB";

/** As `accelerate config` writes it, and as TRL's and the alignment handbook's examples have it. */
const file = (deepspeed: string): string => `
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
${deepspeed
  .trim()
  .split("\n")
  .map((line) => `  ${line.trim()}`)
  .join("\n")}
distributed_type: DEEPSPEED
downcast_bf16: 'no'
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: ${RANKS}
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
`;

const ZERO_3 = `
  deepspeed_multinode_launcher: standard
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: 3`;

const FILES = {
  "ZeRO-1":
    "deepspeed_multinode_launcher: standard\n gradient_accumulation_steps: 1\n zero3_init_flag: false\n zero_stage: 1",
  "ZeRO-2":
    "deepspeed_multinode_launcher: standard\n gradient_accumulation_steps: 2\n gradient_clipping: 1.0\n" +
    " offload_optimizer_device: none\n offload_param_device: none\n zero3_init_flag: false\n zero_stage: 2",
  "ZeRO-3": ZERO_3,
} as const;

function launched(folder: string, config: string, ...words: string[]): Baton {
  const model = writeModel(folder, { tied: true, keyValueHeads: 2, dtype: "bfloat16" });
  writeFileSync(join(folder, "accelerate.yaml"), file(config));
  const engine = ["engine.dtype=bfloat16", "engine.maxModelLength=32", "engine.maxSequences=16"];
  return new Baton(
    folder,
    [
      ...["run", "--model", model, "--out", join(folder, "out"), "--log", "--engines", "1", "--tp", String(RANKS)],
      ...["--ranks", String(RANKS), "--gpus", String(RANKS), "--simulated", GPU],
      ...engine.flatMap((pair) => ["--set", pair]),
      ...["--", python, "-m", "accelerate.commands.launch", "--config_file", join(folder, "accelerate.yaml")],
      ...[join(fixtures, "accelerate_rank.py"), "--model", model, ...words],
    ],
    { BATON_PYTHON: python },
  );
}

async function refused(code: string, config: string, ...words: string[]): Promise<string> {
  return withFolder(async (folder) => {
    const baton = launched(folder, config, ...words);
    const { output, code: exit } = await baton.ended;
    expect(errorCodes(output), output).toEqual([code]);
    expect(exit).toBe(1);
    return output;
  });
}

describe("accelerate launch", { timeout: 120_000 }, () => {
  const files = Object.entries(FILES).filter(([name]) => ALL || name === "ZeRO-3");
  it.each(files)("with the file for %s trains, and every check passes", async (name, config) => {
    await withFolder(async (folder) => {
      const baton = launched(folder, config, "--steps", "2");
      const { code, output } = await baton.ended;
      expect(code, output).toBe(0);
      const { checks, topology, handoffs } = baton.summary();
      expect(topology.zeroStage).toBe(Number(name.at(-1)));
      expect(handoffs.toTraining).toBe(2);
      expect(checks.weightChecksumsFailed).toBe(0);
      expect(checks.weightChecksumsPassed).toBeGreaterThan(0);
    });
  });

  it("is refused with an optimizer on the host, by its name and before the model is built", async () => {
    const output = await refused(
      "UNSUPPORTED_DEEPSPEED",
      ZERO_3.replace("offload_optimizer_device: none", "offload_optimizer_device: cpu"),
    );
    expect(output).toContain("offload_optimizer.device: cpu");
  });

  it("is refused when each process believes that it is alone", async () => {
    const output = await refused("WORLD_MISMATCH", FILES["ZeRO-2"], "--unnamed-backend");
    expect(output).toContain("InitProcessGroupKwargs(backend='gloo')");
  });
});
