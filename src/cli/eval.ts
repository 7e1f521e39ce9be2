/** `baton eval --model DIR --data FILE.jsonl`: how often a model answers right. */
import { resolve } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { evaluationReport, evaluationSummary } from "./eval-report.js";
import { orInterrupted } from "./interrupted.js";
import { atLeastOne } from "./options.js";
import { parseAnswer, sayToTerminal } from "./preflight.js";
import { callModule } from "./python-module.js";
import { completePython } from "./setup-command.js";

interface EvalOptions {
  readonly model: string;
  readonly data: string;
  readonly base?: string;
  readonly out: string;
  readonly json?: boolean;
  readonly deadline: number;
  /** As Python takes them. */
  readonly [option: string]: unknown;
}

const MODULE = "baton.evaluation";
const MINUTE_MS = 60_000;

export function addEval(program: Command): void {
  program
    .command("eval")
    .description("how often a model answers right: pass@1 and pass@k over a file of problems with answers")
    .requiredOption("--model <dir>", "a model, an adapter, a checkpoint, or the folder of a training run (its newest)")
    .requiredOption("--data <file>", "JSONL file, a problem and its answer a line; GSM8K's `#### 18` is understood")
    .option("--base <dir>", "the model that an adapter or a checkpoint of DeepSpeed belongs to, where it does not say")
    .option("--samples <n>", "completions of each problem (default: 1)", atLeastOne)
    .option("--k <list>", "which pass@k, such as 1,8 (default: 1, and the number of samples)", counts)
    .option("--temperature <t>", "of sampling; 0: the likeliest token (default: 0, with several samples 1)", number)
    .option("--top-k <n>", "sample among the so many likeliest tokens (default: 0, all)", natural)
    .option("--top-p <p>", "sample among the likeliest of this probability (default: 1)", number)
    .option("--min-p <p>", "sample among tokens at least this share as likely as the likeliest (default: 0)", number)
    .option("--seed <n>", "of sampling (default: 0)", natural)
    .option("--max-tokens <n>", "tokens after which a completion is cut off (default: 2048, or what fits)", atLeastOne)
    .option("--limit <n>", "how many problems, from the first (default: all)", atLeastOne)
    .option("--problem-column <name>", "where the problem is (default: problem, question or prompt)")
    .option("--answer-column <name>", "where the answer is (default: answer, final_answer or expected_answer)")
    .option("--template <text>", "the prompt, in which {question} stands for the column `question`")
    .option("--system <text>", "a system message before each prompt, with columns as in --template")
    .option("--no-chat", "without the model's chat template (default: with it, where the model has one)")
    .addOption(new Option("--engine <name>", "(default: vllm where it can run)").choices(["vllm", "transformers"]))
    .option("--tp <n>", "GPUs of one engine; others get engines of their own (default: 1)", atLeastOne)
    .option("--batch-size <n>", "completions at once on an engine (default: vllm 256, transformers 32)", atLeastOne)
    .addOption(new Option("--dtype <name>", "(default: the model's)").choices(["bfloat16", "float16", "float32"]))
    .option("--confidence <share>", "of the intervals (default: 0.95)", number)
    .option("--start-deadline <minutes>", "in which an engine must have loaded the model (default: 30)", number)
    .option("--stall-deadline <minutes>", "from one token of a batch to the next (default: 10)", number)
    .option("--judge-deadline <seconds>", "of a comparison; the completion is wrong after it (default: 5)", number)
    .option("--deadline <minutes>", "after which all of it is given up", atLeastOne, 24 * 60)
    .option("--no-resume", "begin anew (default: go on from the completions of the same evaluation in --out)")
    .option("--out <dir>", "folder for results.jsonl, summary.json and logs", "baton-out/eval")
    .option("--json", "print the summary as JSON")
    .action(async (options: EvalOptions) => {
      process.exitCode = await orInterrupted(() => evaluate(options));
    });
}

async function evaluate({ json, deadline, ...options }: EvalOptions): Promise<number> {
  const { model, data, base, out } = options;
  const input = {
    ...options,
    ...{ model: resolve(model), data: resolve(data), out: resolve(out) },
    ...(base === undefined ? {} : { base: resolve(base) }),
  };
  const answer = await callModule({
    python: await completePython({ trains: false }),
    module: MODULE,
    args: [String(process.pid)],
    input,
    deadlineMs: deadline * MINUTE_MS,
    deadline: {
      option: "--deadline",
      action: "The same command goes on where it stopped; raise --deadline, or evaluate fewer problems or samples.",
    },
    environment: process.env,
    say: sayToTerminal,
  });
  const summary = parseAnswer(evaluationSummary, answer, MODULE);
  process.stdout.write(json === true ? `${JSON.stringify(answer, null, 2)}\n` : evaluationReport(summary));
  return 0;
}

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("expected a number");
  return value;
}

function natural(text: string): number {
  const value = number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError("expected a whole number from 0");
  return value;
}

function counts(text: string): number[] {
  return text.split(",").map((part) => atLeastOne(part.trim()));
}
