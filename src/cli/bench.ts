/** `baton bench`. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { GPU_SUBJECTS, type GpuSubject, GRAPHS, type Graphs, type Layout } from "../bench/gpu/plan.js";
import { SHAPES, type ShapeName } from "../bench/gpu/shapes.js";
import { SUBJECTS, type Subject } from "../bench/row.js";
import { BatonError } from "../errors.js";
import { atLeastOne } from "./options.js";

/** The warm cycles of each subject on a GPU: enough for a p95, or a quick look. */
const CYCLES = 20;
const QUICK_CYCLES = 4;

/** Several subjects of the CPU under one name. */
const GROUPS: Readonly<Record<string, readonly Subject[]>> = {
  control: ["barrier", "gather"],
  nvml: ["sampler"],
};
const NAMES = [...Object.keys(GROUPS), ...SUBJECTS, ...GPU_SUBJECTS];

/** Options that mean something whatever is measured; the others say something of GPU_SUBJECTS only. */
const FOR_ALL: ReadonlySet<string> = new Set<keyof BenchOptions>(["subjects", "only", "out", "json"]);

interface BenchOptions {
  readonly json?: string;
  readonly only?: Subject[];
  readonly subjects?: readonly string[];
  readonly shapes: readonly string[];
  readonly model: readonly string[];
  readonly out?: string;
  readonly quick?: boolean;
  readonly cycles?: number;
  readonly graphs: Graphs;
  readonly parts?: string;
  readonly list?: boolean;
  readonly gpus: number;
  readonly engines?: number;
  readonly tp?: number;
  readonly iterations: number;
  readonly reference?: boolean;
  readonly lora?: number;
}

const words =
  (allowed: readonly string[]) =>
  (text: string): string[] => {
    const found = text.split(",").map((word) => word.trim());
    const wrong = found.find((word) => !allowed.includes(word));
    if (wrong !== undefined) throw new InvalidArgumentError(`${wrong} is none of ${allowed.join(", ")}`);
    return found;
  };

export function addBench(program: Command): void {
  program
    .command("bench")
    .description("measure Baton beside its peers and the limits of the hardware, in one run")
    .option(
      "--subjects <list>",
      `of ${NAMES.join(", ")}, with commas (default: all that this machine has)`,
      words(NAMES),
    )
    .option("--shapes <list>", `models to measure on a GPU: ${SHAPES.join(", ")}`, words(SHAPES), [])
    .option("--model <dir>", "also the model of this config.json; may be repeated", collect, [])
    .option("--out <dir>", "folder for all results; what lies there is joined into the table")
    .option("--cycles <n>", `warm cycles of each subject on a GPU (default: ${CYCLES})`, atLeastOne)
    .option("--quick", `${QUICK_CYCLES} warm cycles`)
    .addOption(
      new Option("--graphs <how>", "CUDA graphs of vLLM: its default, for decoding only, or none")
        .choices(GRAPHS)
        .default("vllm"),
    )
    .option("--gpus <n>", "GPUs to use, with a training rank on each", atLeastOne, 1)
    .option("--engines <n>", "engines on them (default: 1, or what --tp leaves)", atLeastOne)
    .option("--tp <n>", "tensor-parallel workers of each engine (default: what --engines leaves)", atLeastOne)
    .option("--iterations <n>", "optimizer steps between two handoffs", atLeastOne, 1)
    .option("--reference", "a frozen reference model beside the policy, in handoffs")
    .option("--lora <rank>", "train adapters of this rank in handoffs, not all parameters", atLeastOne)
    .option("--parts <list>", "on a GPU, only the processes whose names contain one of these words, with commas")
    .option("--list", "print the names of the processes that a bench on a GPU would start")
    .option("--json <file>", "write the figures that need no GPU as a list of JSON objects")
    .addOption(new Option("--only <subjects...>", "these subjects that need no GPU").choices(SUBJECTS))
    .action(async (options: BenchOptions, command: Command) => {
      const given = command.options.filter((option) => {
        const name = option.attributeName();
        return !FOR_ALL.has(name) && command.getOptionValueSource(name) === "cli";
      });
      process.exitCode = await run(
        options,
        given.map(({ long }) => long ?? ""),
      );
    });
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

/** @throws BatonError BAD_TOPOLOGY */
function layoutOf({ gpus, engines, tp }: Pick<BenchOptions, "gpus" | "engines" | "tp">): Layout {
  const count = engines ?? (tp === undefined ? 1 : gpus / tp);
  const tensorParallel = tp ?? gpus / count;
  if (count * tensorParallel === gpus && Number.isInteger(count) && Number.isInteger(tensorParallel)) {
    return { gpus, engines: count, tensorParallel };
  }
  throw new BatonError({
    code: "BAD_TOPOLOGY",
    message: "The engines of the bench do not use every GPU once.",
    expected: `--engines times --tp is --gpus, ${gpus}`,
    found: `--engines ${engines ?? "not given"}, --tp ${tp ?? "not given"}`,
    action: "Correct one of the three.",
  });
}

/** @param onGpuOnly options that were given and say something of GPU_SUBJECTS only */
async function run(options: BenchOptions, onGpuOnly: readonly string[]): Promise<number> {
  const { bench } = await import("../bench/main.js");
  const { hasNvidiaDriver } = await import("./gpus.js");
  const real = await hasNvidiaDriver();
  // `pool` writes to its memory from the host: on a real GPU `offload` measures the same, with a trainer in it.
  const everything = real ? [...SUBJECTS.filter((subject) => subject !== "pool"), ...GPU_SUBJECTS] : SUBJECTS;
  const named: readonly string[] = options.only ?? options.subjects ?? everything;
  const wanted = [...new Set<string>(named.flatMap((name): readonly string[] => GROUPS[name] ?? [name]))];
  const control = SUBJECTS.filter((subject) => wanted.includes(subject));
  const onGpu: GpuSubject[] = GPU_SUBJECTS.filter((subject) => wanted.includes(subject));
  if (onGpu.length === 0 && onGpuOnly.length > 0) {
    throw new BatonError({
      code: "BENCH_OPTION_UNUSED",
      message: "An option of the bench is for subjects that are not measured.",
      expected: `${onGpuOnly.join(", ")} beside --subjects with one of ${GPU_SUBJECTS.join(", ")}`,
      found: `the subjects ${control.join(", ")}${everything === named ? ": all that need no GPU, as there is none" : ""}`,
      action: "Name the subjects (on stand-in GPUs --shapes tiny is enough), or leave the option away.",
    });
  }
  if (onGpu.length === 0 && options.out === undefined) {
    await bench({ jsonFile: options.json ?? null, subjects: control });
    return 0;
  }
  const { gpuBench } = await import("../bench/gpu/main.js");
  const usual: ShapeName[] = real ? ["1.5b", "7b"] : ["tiny"];
  const shapes = options.shapes.length > 0 || options.model.length > 0 ? (options.shapes as ShapeName[]) : usual;
  const ok = await gpuBench({
    out: options.out ?? "baton-bench",
    subjects: onGpu,
    shapes,
    models: options.model,
    cycles: options.cycles ?? (options.quick === true ? QUICK_CYCLES : CYCLES),
    graphs: options.graphs,
    layout: layoutOf(options),
    iterations: options.iterations,
    reference: options.reference === true,
    lora: options.lora ?? 0,
    parts: options.parts?.split(",") ?? [],
    list: options.list === true,
    control,
    words: process.argv.slice(2),
  });
  return ok ? 0 : 1;
}
