/** Runs a plan with its progress on the terminal, and says how it ended. */
import { readFileSync } from "node:fs";
import { join, relative } from "node:path";
import type { NodesPlan } from "../controller/nodes.js";
import { type RunOutcome, type RunPlan, runNode } from "../controller/run.js";
import { PACKAGES } from "../doctor/versions.js";
import { BatonError } from "../errors.js";
import { factsOf, readKey } from "../nodes/index.js";
import { type NodePlace, nodeFolder } from "../recipe/index.js";
import { endOfLog } from "../report/log-end.js";
import { Progress } from "../report/progress.js";
import { packageVersion } from "./package.js";
import { probePython } from "./python.js";
import { orTellNodes } from "./refusal.js";

const LOG_LINES = 20;

export interface Execution extends Omit<RunPlan, "version" | "environment" | "progress" | "nodes" | "out"> {
  /** This node among several; null: there is one. */
  readonly place: NodePlace | null;
  /** What must be the same on every node, beside the recipe, by name. */
  readonly facts?: Readonly<Record<string, string>>;
  /** The command is the user's, and should be the same on every node. */
  readonly ownCommand?: boolean;
  /** Absolute path of the run's folder, the same on all nodes. */
  readonly out: string;
}

/** @throws BatonError when the start is refused */
export async function execute({ place, facts = {}, ownCommand = false, ...execution }: Execution): Promise<RunOutcome> {
  const progress = new Progress(process.stderr);
  const version = packageVersion();
  const plan = { ...execution, out: nodeFolder(execution.out, place) };
  const compared = ownCommand ? plan.command : [];
  const nodes =
    place === null
      ? null
      : await orTellNodes({ place, nodes: plan.recipe.nodes }, async () => ({
          ...(await nodesPlan(place, version, facts, plan)),
          command: compared,
        }));
  const outcome = await runNode({ ...plan, nodes, version, environment: process.env, progress });
  const say = (line: string): void => progress.line(line);
  if (outcome.failure !== null) {
    for (const log of outcome.logs) showLog(log, say);
    say(new BatonError(outcome.failure).describe());
  }
  const out = relative(process.cwd(), plan.out) || ".";
  say(outcome.failure === null ? closing(outcome, out) : `what happened is in events.jsonl and summary.json in ${out}`);
  return outcome;
}

/** @throws BatonError NODES_KEY_UNREADABLE */
async function nodesPlan(
  place: NodePlace,
  version: string,
  others: Readonly<Record<string, string>>,
  { recipe, python }: Pick<RunPlan, "recipe" | "python">,
): Promise<Omit<NodesPlan, "command">> {
  const probe = await probePython(python, PACKAGES);
  const facts = factsOf({
    version,
    recipe,
    modelConfig: readFileSync(join(recipe.engine.model, "config.json"), "utf8"),
    python: probe?.version.join(".") ?? "not known",
    packages: probe?.versions ?? {},
    others,
  });
  return { place, facts, key: readKey(recipe.nodes.keyFile, process.env) };
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
