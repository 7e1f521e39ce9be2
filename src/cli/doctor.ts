/** `baton doctor`: whether this machine can do what Baton needs, and what to do where it cannot. */
import { resolve } from "node:path";
import { type Command, Option } from "commander";
import type { ModelPlan } from "../doctor/model.js";
import { BatonError } from "../errors.js";
import { atLeastOne } from "./options.js";
import { packageRoot, packageVersion } from "./package.js";

interface DoctorOptions {
  readonly json?: boolean;
  readonly model?: string;
  readonly ranks: number;
  readonly zero: "1" | "2" | "3";
  readonly tp: number;
  readonly dtype: ModelPlan["dtype"];
  readonly maxModelLength: number;
  readonly maxSequences: number;
}

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("look at GPUs, driver, host, versions and settings, and say what would stop a run")
    .option("--json", "write the findings as JSON to the standard output")
    .option("--model <folder>", "also say whether this model (a folder with config.json) fits")
    .option("--ranks <n>", "with --model: training ranks, one GPU each", atLeastOne, 1)
    .addOption(new Option("--zero <stage>", "with --model: ZeRO stage").choices(["1", "2", "3"]).default("2"))
    .option("--tp <n>", "with --model: tensor parallelism of each engine", atLeastOne, 1)
    .addOption(
      new Option("--dtype <type>", "with --model: type of policy and engine")
        .choices(["float32", "bfloat16", "float16"])
        .default("bfloat16"),
    )
    .option("--max-model-length <n>", "with --model: longest prompt plus completion, in tokens", atLeastOne, 2048)
    .option("--max-sequences <n>", "with --model: sequences that an engine generates at once", atLeastOne, 256)
    .action(async (options: DoctorOptions) => {
      const code = await doctor(options);
      // A child that hangs in the kernel cannot be ended, and must not keep this process.
      process.stdout.write("", () => process.exit(code));
    });
}

async function doctor(options: DoctorOptions): Promise<number> {
  const [{ collectFacts }, { judge }, { describeFindings }, { exitCodeOf, findingsOf }, { linkMatrix }] =
    await Promise.all([
      import("../doctor/collect.js"),
      import("../doctor/judge.js"),
      import("../doctor/print.js"),
      import("../doctor/finding.js"),
      import("../doctor/devices.js"),
    ]);
  const planned =
    options.model === undefined ? null : await planOf(resolve(options.model), options).catch(asBatonError);
  // A program that reads the findings gets this one among them; a person wants to mend it first.
  if (planned instanceof BatonError && options.json !== true) throw planned;
  const wrong = planned instanceof BatonError ? [findingsOf("model").problem(planned.code, planned.toFields())] : [];
  const plan = planned instanceof BatonError ? null : planned;
  const version = packageVersion();
  const facts = await collectFacts({
    environment: process.env,
    packageRoot,
    folder: process.cwd(),
    version,
  });
  const findings = [...judge(facts, plan), ...wrong];
  const code = exitCodeOf(findings);
  if (options.json === true) {
    const report = { baton: version, gpus: facts.gpus, exitCode: code, findings };
    process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  } else {
    const colour = process.stdout.isTTY === true && process.env.NO_COLOR === undefined;
    const matrix = facts.gpus === "real" ? linkMatrix(facts.nvml, facts.cuda.peers) : [];
    process.stdout.write(describeFindings(findings, { colour, matrix }));
  }
  return code;
}

function asBatonError(error: unknown): BatonError {
  if (error instanceof BatonError) return error;
  throw error;
}

/** @throws BatonError MODEL_NOT_FOUND, MODEL_CONFIG_INVALID */
async function planOf(folder: string, options: DoctorOptions): Promise<ModelPlan> {
  const { readModelConfig } = await import("../recipe/index.js");
  const { readShape } = await import("../doctor/parameters.js");
  const config = readModelConfig(folder);
  return {
    folder,
    config,
    shape: readShape(folder),
    ranks: options.ranks,
    zero: Number(options.zero) as ModelPlan["zero"],
    tensorParallel: options.tp,
    dtype: options.dtype,
    maxModelLength: options.maxModelLength,
    maxSequences: options.maxSequences,
  };
}
