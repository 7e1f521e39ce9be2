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

/** A value, and which key or variable it came from. */
interface Given<T> {
  readonly value: T;
  readonly source: string;
}

interface Said {
  readonly count: Given<number>;
  readonly rank: Given<number> | null;
  readonly address: Given<string> | null;
  readonly port: Given<number> | null;
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
  const count = ofRecipe("nodes.count", nodes.count) ?? said?.count ?? null;
  if (count === null || count.value === 1) return null;
  if (count.value < 1) throw invalid(`${count.source} is no number of nodes`, "at least 1", shown(count));
  const rank = ofRecipe("nodes.rank", nodes.rank) ?? said?.rank ?? null;
  const address = ofRecipe("nodes.address", nodes.address) ?? said?.address ?? text(environment, "MASTER_ADDR");
  const port = ofRecipe("nodes.port", nodes.port) ?? said?.port ?? number(environment, "MASTER_PORT");
  const numbers = `a number from 0 to ${count.value - 1}`;
  if (rank === null) {
    throw invalid(
      `${shown(count)}: there are several nodes, but nothing says which of them this is`,
      `${numbers} in nodes.rank, PET_NODE_RANK, or SLURM_NODEID of a job step`,
      "none of them",
    );
  }
  if (rank.value >= count.value) {
    throw invalid(`${rank.source} is the number of no node`, `${numbers} (${shown(count)})`, shown(rank));
  }
  if (address === null) {
    throw invalid(
      `${shown(count)}: there are several nodes, but nothing says where node 0 is`,
      "its name or address in nodes.address, PET_MASTER_ADDR, MASTER_ADDR, or SLURM_STEP_NODELIST of a job step",
      "none of them",
    );
  }
  if (port !== null && (port.value < 1 || port.value >= LAST_PORT)) {
    throw invalid(
      `${port.source} is no port for the nodes, which need it and the one after it`,
      `a port from 1 to ${LAST_PORT - 1}`,
      shown(port),
    );
  }
  return { count: count.value, rank: rank.value, address: address.value, port: port?.value ?? DEFAULT_PORT };
}

const shown = ({ source, value }: Given<number | string>): string => `${source}=${value}`;

function ofRecipe<T>(source: string, value: T | null): Given<T> | null {
  return value === null ? null : { source, value };
}

function saidByTorchrun(environment: Environment): Said | null {
  const nodes = text(environment, "PET_NNODES");
  if (nodes === null) return null;
  const [least, most] = nodes.value.split(":");
  if (most !== undefined && most !== least) {
    throw invalid(
      "PET_NNODES asks for a number of nodes that may change, and a run of Baton has a fixed one",
      "one number in PET_NNODES, or nodes.count",
      shown(nodes),
    );
  }
  return {
    count: whole({ ...nodes, value: least ?? "" }),
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
  if (count.value > 1 && tasks !== null && tasks.value !== count.value) {
    throw invalid(
      "Slurm started more than one task on a node, and a node has one controller, which starts the ranks",
      `${shown({ ...tasks, value: count.value })}: srun --ntasks-per-node=1`,
      `${shown(tasks)} on ${count.value} nodes`,
    );
  }
  const hosts = text(environment, "SLURM_STEP_NODELIST");
  return {
    count,
    rank: number(environment, "SLURM_NODEID"),
    address: hosts === null ? null : { ...hosts, value: firstHost(hosts.value) },
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

function text(environment: Environment, name: string): Given<string> | null {
  const value = environment[name]?.trim() ?? "";
  return value === "" ? null : { source: name, value };
}

function number(environment: Environment, name: string): Given<number> | null {
  const given = text(environment, name);
  return given === null ? null : whole(given);
}

function whole(given: Given<string>): Given<number> {
  if (/^\d{1,9}$/.test(given.value)) return { source: given.source, value: Number(given.value) };
  throw invalid(`${given.source} of the environment is not a number`, "a whole number", shown(given));
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
