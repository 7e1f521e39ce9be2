/** Runs of `accelerate launch` with a configuration file, and an `Accelerator` in the script. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Baton, fixtures } from "./baton.js";
import { writeModel } from "./deepspeed.js";
import { partOf, python } from "./light.js";
import { type Place, placed } from "./two-nodes.js";

/** Of one node; of two each has a half. */
const RANKS = 2;
/** Without a word on buckets DeepSpeed takes 5e8 elements, which for ZeRO-3 is 1 GB of each GPU. */
const GPU = "2GiB";

/** As `accelerate config` writes it, and as TRL's and the alignment handbook's examples have it. */
const file = (deepspeed: string, precision: string): string => `
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
mixed_precision: ${precision}
num_machines: 1
num_processes: ${RANKS}
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
`;

export const ZERO_3 = `
  deepspeed_multinode_launcher: standard
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: 3`;

export const FILES = {
  "ZeRO-1":
    "deepspeed_multinode_launcher: standard\n gradient_accumulation_steps: 1\n zero3_init_flag: false\n zero_stage: 1",
  "ZeRO-2":
    "deepspeed_multinode_launcher: standard\n gradient_accumulation_steps: 2\n gradient_clipping: 1.0\n" +
    " offload_optimizer_device: none\n offload_param_device: none\n zero3_init_flag: false\n zero_stage: 2",
  "ZeRO-3": ZERO_3,
} as const;

/** `place`: this node of two. Accelerate is `told` of it on the command line: the file is the same on both. */
export function launched(
  folder: string,
  config: string,
  words: readonly string[],
  place?: Place,
  { told = true, dtype = "bfloat16" }: { told?: boolean; dtype?: "bfloat16" | "float16" } = {},
): Baton {
  const model = writeModel(folder, { tied: true, keyValueHeads: 2, dtype });
  writeFileSync(join(folder, "accelerate.yaml"), file(config, dtype === "float16" ? "fp16" : "bf16"));
  const ranks = String(place === undefined ? RANKS : RANKS / 2);
  const engine = [`engine.dtype=${dtype}`, "engine.maxModelLength=32", "engine.maxSequences=16"];
  const nodes = place === undefined ? [] : [...placed(place.node, place.port), "nodes.meetMs=60000"];
  return new Baton(
    folder,
    [
      ...["run", "--model", model, "--out", join(folder, "out"), "--log", "--engines", "1", "--tp", ranks],
      ...["--ranks", ranks, "--gpus", ranks, "--simulated", GPU],
      ...[...engine, ...nodes].flatMap((pair) => ["--set", pair]),
      ...["--", python, "-m", "accelerate.commands.launch", "--config_file", join(folder, "accelerate.yaml")],
      ...(place === undefined ? [] : told ? onMachines(place) : ["--num_processes", ranks, "--main_process_port", "0"]),
      ...[join(fixtures, "accelerate_rank.py"), "--model", model, ...words],
    ],
    { BATON_PYTHON: python },
    join(folder, "out", partOf(place?.node ?? 0)),
  );
}

/** As a user says it on each of two machines. */
export function onMachines({ node, port }: Place): string[] {
  return [
    ...["--num_machines", "2", "--machine_rank", String(node)],
    ...["--main_process_ip", "127.0.0.1", "--main_process_port", String(port)],
  ];
}
