/** Runs a plan with its progress on the terminal, and says how it ended. */
import { relative } from "node:path";
import { type RunOutcome, type RunPlan, runNode } from "../controller/run.js";
import { BatonError } from "../errors.js";
import { endOfLog } from "../report/log-end.js";
import { Progress } from "../report/progress.js";
import { packageVersion } from "./package.js";

const LOG_LINES = 20;

/** @throws BatonError when the start is refused */
export async function execute(plan: Omit<RunPlan, "version" | "environment" | "progress">): Promise<RunOutcome> {
  const progress = new Progress(process.stderr);
  const outcome = await runNode({ ...plan, version: packageVersion(), environment: process.env, progress });
  const say = (line: string): void => progress.line(line);
  if (outcome.failure !== null) {
    for (const log of outcome.logs) showLog(log, say);
    say(new BatonError(outcome.failure).describe());
  }
  const out = relative(process.cwd(), plan.out) || ".";
  say(outcome.failure === null ? closing(outcome, out) : `what happened is in events.jsonl and summary.json in ${out}`);
  return outcome;
}

function showLog(path: string, say: (line: string) => void): void {
  const lines = endOfLog(path, LOG_LINES);
  if (lines.length === 0) return;
  say(`last lines of ${relative(process.cwd(), path)}:`);
  for (const line of lines) say(`  ${line}`);
}

function closing({ summary }: RunOutcome, out: string): string {
  const { reward, batches, seconds } = summary;
  const learned =
    reward.heldOutBefore === null || reward.heldOutAfter === null
      ? ""
      : `, held-out reward ${reward.heldOutBefore.toFixed(3)} -> ${reward.heldOutAfter.toFixed(3)}`;
  const simulated = summary.simulated ? " on stand-in GPUs (simulated)" : "";
  return (
    `finished: ${batches} ${batches === 1 ? "batch" : "batches"}${simulated} in ${seconds.toFixed(0)} s${learned}; ` +
    `see summary.json, events.jsonl and trace.json (ui.perfetto.dev) in ${out}`
  );
}
