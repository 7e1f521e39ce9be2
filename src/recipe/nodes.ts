/** Which of several nodes this is: as the recipe says, or whoever started the same command on each of them. */
import { join } from "node:path";
import { BatonError } from "../errors.js";
import type { Recipe } from "./schema.js";

type Environment = Readonly<Record<string, string | undefined>>;

/** This node among others. There are at least two. */
export interface NodePlace {
  readonly count: number;
  /** From 0. */
  readonly rank: number;
  /** Of node 0, as the others reach it. */
  readonly address: string;
  /** Where the ranks meet, on node 0; the controllers meet at the next port. */
  readonly port: number;
}

/** Where this node writes: node 0 in the folder of the run, the others in folders of their own in it. */
export function nodeFolder(out: string, place: NodePlace | null): string {
  return place === null || place.rank === 0 ? out : join(out, `node-${place.rank}`);
}

/** torchrun's own default. */
const DEFAULT_PORT = 29_500;
const LAST_PORT = 65_535;

interface Said {
  /** What says it, for errors. */
  readonly source: string;
  readonly count: number | null;
  readonly rank: number | null;
  readonly address: string | null;
  readonly port: number | null;
}

/**
 * Where the recipe leaves something open, torchrun's variables (PET_…, which Kubeflow's trainer sets) fill it in, or
 * else those of Slurm's job step.
 *
 * @returns null when this node trains alone
 * @throws BatonError NODES_INVALID when it cannot be told which node this is
 */
export function nodePlace(recipe: Pick<Recipe, "nodes">, environment: Environment): NodePlace | null {
  const { nodes } = recipe;
  const said = saidByTorchrun(environment) ?? saidBySlurm(environment);
  const count = nodes.count ?? said?.count ?? 1;
  if (count === 1) return null;
  const rank = nodes.rank ?? said?.rank ?? null;
  const address = nodes.address ?? said?.address ?? text(environment, "MASTER_ADDR");
  const port = nodes.port ?? said?.port ?? number(environment, "MASTER_PORT") ?? DEFAULT_PORT;
  const where = nodes.count === null ? (said?.source ?? "") : "nodes.count";
  if (rank === null || rank >= count) {
    throw invalid(
      `${where} says that there are ${count} nodes, but not which of them this is`,
      `a number from 0 to ${count - 1}: nodes.rank, PET_NODE_RANK, or SLURM_NODEID of a job step`,
      rank === null ? "none of them" : `${rank}`,
    );
  }
  if (address === null) {
    throw invalid(
      `${where} says that there are ${count} nodes, but not where node 0 is`,
      "its name or address: nodes.address, PET_MASTER_ADDR, MASTER_ADDR, or SLURM_STEP_NODELIST of a job step",
      "none of them",
    );
  }
  if (port < 1 || port >= LAST_PORT) {
    throw invalid(
      "the ports of the nodes are not possible ones",
      `two from 1 to ${LAST_PORT}`,
      `${port} and ${port + 1}`,
    );
  }
  return { count, rank, address, port };
}

function saidByTorchrun(environment: Environment): Said | null {
  const nodes = text(environment, "PET_NNODES");
  if (nodes === null) return null;
  const [least, most] = nodes.split(":");
  if (most !== undefined && most !== least) {
    throw invalid(
      "torchrun's environment asks for a number of nodes that may change, and a run of Baton has a fixed one",
      "one number in PET_NNODES, or nodes.count",
      `PET_NNODES=${nodes}`,
    );
  }
  return {
    source: "PET_NNODES",
    count: whole("PET_NNODES", least ?? ""),
    rank: number(environment, "PET_NODE_RANK"),
    address: text(environment, "PET_MASTER_ADDR"),
    port: number(environment, "PET_MASTER_PORT"),
  };
}

/** A job step has one task a node; what a batch script itself sees is not a step of several nodes. */
function saidBySlurm(environment: Environment): Said | null {
  const count = number(environment, "SLURM_STEP_NUM_NODES");
  if (count === null) return null;
  const tasks = number(environment, "SLURM_STEP_NUM_TASKS");
  if (count > 1 && tasks !== null && tasks !== count) {
    throw invalid(
      "Slurm started more than one task on a node, and a node has one controller, which starts the ranks",
      "srun --ntasks-per-node=1",
      `${tasks} tasks on ${count} nodes`,
    );
  }
  const hosts = text(environment, "SLURM_STEP_NODELIST");
  return {
    source: "SLURM_STEP_NUM_NODES",
    count,
    rank: number(environment, "SLURM_NODEID"),
    address: hosts === null ? null : firstHost(hosts),
    port: null,
  };
}

/**
 * The first host of a list in Slurm's short form: `gpu[03-07,12],login1` gives `gpu03`. As `scontrol show hostnames`,
 * which containers often lack.
 */
export function firstHost(list: string): string {
  const [first = ""] = list.split(/,(?![^[]*\])/);
  return first.replaceAll(/\[(\w+)[^\]]*\]/g, "$1");
}

function text(environment: Environment, name: string): string | null {
  const value = environment[name]?.trim() ?? "";
  return value === "" ? null : value;
}

function number(environment: Environment, name: string): number | null {
  const value = text(environment, name);
  return value === null ? null : whole(name, value);
}

function whole(name: string, value: string): number {
  if (/^\d{1,9}$/.test(value)) return Number(value);
  throw invalid(`${name} of the environment is not a number`, "a whole number", `${name}=${value}`);
}

function invalid(message: string, expected: string, found: string): BatonError {
  return new BatonError({
    code: "NODES_INVALID",
    message: `${message}.`,
    expected,
    found,
    action:
      "Set nodes.count, nodes.rank and nodes.address (--set nodes.rank=1), or start it as docs/multi-node.md says.",
  });
}
