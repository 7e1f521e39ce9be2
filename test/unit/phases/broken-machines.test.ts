/**
 * Whether the properties would notice: each machine here is the real one with one promise broken, and a
 * generated run must find it. A break that nobody finds would mean that the property is empty.
 */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Command, type Event, type State, transition } from "../../../src/phases/index.js";
import { judge } from "./judge.js";
import { Violation } from "./properties.js";
import { type Scenario, scenario } from "./scenario.js";
import { type Machine, World } from "./world.js";

/** The first violation that runs of this machine come to. */
function violationOf(machine: () => Machine, scenarios: readonly Scenario[]): string | null {
  for (const one of scenarios) {
    const world = new World(one, machine());
    try {
      judge(world, world.run());
    } catch (error) {
      if (error instanceof Violation) return error.message;
      throw error;
    }
  }
  return null;
}

/** The real machine behind a change of what it hears. */
const hears =
  (change: (event: Event, state: State) => Event): (() => Machine) =>
  () =>
  (state, event) =>
    transition(state, change(event, state));

/** The real machine behind a change of what it commands. */
const commands =
  (change: (command: Command, state: State) => Command[]): (() => Machine) =>
  () =>
  (state, event) => {
    const next = transition(state, event);
    return { state: next.state, commands: next.commands.flatMap((command) => change(command, next.state)) };
  };

/** The real machine, which keeps some commands to itself and gives the answers too. */
const answersItself =
  (keeps: (command: Command) => boolean, answer: (command: Command) => Event): (() => Machine) =>
  () =>
  (state, event) => {
    let next = transition(state, event);
    const passed: Command[] = [];
    let queue = [...next.commands];
    while (queue.length > 0) {
      const command = queue.shift() as Command;
      if (!keeps(command)) {
        passed.push(command);
        continue;
      }
      next = transition(next.state, answer(command));
      queue = [...queue, ...next.commands];
    }
    return { state: next.state, commands: passed };
  };

/** The real machine with its memory changed before each event. */
const remembers =
  (change: (state: State) => State): (() => Machine) =>
  () =>
  (state, event) =>
    transition(change(state), event);

const withEngines = (
  state: State,
  change: (engine: State["engines"][number]) => Partial<State["engines"][number]>,
) => ({
  ...state,
  engines: state.engines.map((engine) => ({ ...engine, ...change(engine) })),
});
const withRanks = (state: State, change: (rank: State["ranks"][number]) => Partial<State["ranks"][number]>) => ({
  ...state,
  ranks: state.ranks.map((rank) => ({ ...rank, ...change(rank) })),
});

const broken: [string, () => Machine, RegExp][] = [
  [
    "believes in room that it has not measured",
    hears((event) =>
      event.type === "room"
        ? { ...event, gpus: event.gpus.map(({ gpu }) => ({ gpu, freeBytes: Number.MAX_SAFE_INTEGER })) }
        : event,
    ),
    /more than GPU \d+ has/,
  ],
  [
    "takes an engine that goes to sleep for one that sleeps",
    remembers((state) =>
      withEngines(state, ({ stage }) => (stage === "sleeping" ? { stage: "asleep", done: true, epoch: null } : {})),
    ),
    /beside an engine that is awake|more than GPU|UNEXPECTED_MESSAGE/,
  ],
  [
    "takes a cache for awake that it did not wake",
    answersItself(
      (command) => command.type === "send" && command.message.type === "wake" && command.message.tags[0] === "kv_cache",
      (command) => {
        const { client, message } = command as Extract<Command, { type: "send" }>;
        const { seq } = message as { seq: number };
        return { type: "awake", engine: client.index, seq, tags: ["kv_cache"] };
      },
    ),
    /cache is not awake/,
  ],
  [
    "takes weights for synced that nobody took",
    answersItself(
      (command) => command.type === "sendSources",
      (command) => {
        const { engine, worker, seq, epoch } = command as Extract<Command, { type: "sendSources" }>;
        return { type: "synced", engine, worker, seq, epoch, compared: [] };
      },
    ),
    /has not taken the weights/,
  ],
  [
    "takes weights for verified that nobody compared",
    answersItself(
      (command) => command.type === "verifyWeights",
      (command) => ({ type: "verified", engine: (command as { engine: number }).engine, failure: null }),
    ),
    /weights that were not verified/,
  ],
  [
    "opens an engine before its weights are verified",
    remembers((state) =>
      withEngines(state, ({ stage }) => (stage === "verifying" ? { stage: "open", proof: null } : {})),
    ),
    /weights that were not verified/,
  ],
  [
    "lets ranks give parameters back while they are read",
    remembers((state) => withEngines(state, () => ({ workers: [] as never }))),
    /is reading|gone|expected, found|does not exist|nothing/,
  ],
  [
    "welcomes ranks while engines start",
    commands((command) =>
      command.type === "welcome" && command.client.role === "worker"
        ? [command, { type: "welcome", client: { role: "rank", index: 0 } }]
        : [command],
    ),
    /while an engine starts/,
  ],
  [
    "forgets the deadline of a release",
    commands((command) => (command.type === "setDeadline" && command.key.startsWith("release") ? [] : [command])),
    /timers and waits differ/,
  ],
  [
    "has no deadline at all",
    commands((command) => (command.type === "setDeadline" || command.type === "clearDeadline" ? [] : [command])),
    /timers and waits differ/,
  ],
  [
    "sets a deadline that never passes",
    commands((command) =>
      command.type === "setDeadline" ? [{ ...command, ms: Number.POSITIVE_INFINITY }] : [command],
    ),
    /deadline that is none/,
  ],
  [
    "does not listen to deadlines",
    hears((event) => (event.type === "deadlinePassed" ? { type: "started" } : event)),
    /timers and waits differ|did not end a run that stands still/,
  ],
  [
    "does not listen to deaths",
    hears((event) => (event.type === "processDied" ? { type: "started" } : event)),
    /_DIED.* expected, found/,
  ],
  [
    "does not listen to lost connections",
    hears((event) => (event.type === "connectionLost" ? { type: "started" } : event)),
    /expected, found/,
  ],
  [
    "does not ask who generated with what",
    hears((event, state) =>
      event.type === "generated" ? { ...event, epoch: state.engines[event.engine]?.epoch ?? 0 } : event,
    ),
    /STALE_EPOCH expected/,
  ],
  [
    "does not ask what was synced",
    hears((event, state) => (event.type === "synced" ? { ...event, epoch: state.epoch } : event)),
    /STALE_EPOCH expected/,
  ],
  [
    "takes every comparison for a good one",
    hears((event) => (event.type === "synced" ? { ...event, compared: [] } : event)),
    /WEIGHTS_DIFFER expected/,
  ],
  [
    "takes every checksum for a good one",
    hears((event) => (event.type === "verified" ? { ...event, failure: null } : event)),
    /WEIGHT_CHECKSUM_MISMATCH expected|weights that were not verified/,
  ],
  [
    "takes all manifests for one",
    hears((event) => (event.type === "manifest" ? { ...event, signature: "same" } : event)),
    /different manifests/,
  ],
  [
    "does not look at logprobs",
    hears((event) => (event.type === "logprobCheck" ? { ...event, maxDifference: null, meanDifference: null } : event)),
    /LOGPROB_MISMATCH expected/,
  ],
  [
    "does not count the calls of the ranks",
    hears((event, state) =>
      event.type === "prompts" ? { ...event, call: state.ranks[event.rank]?.calls ?? 0 } : event,
    ),
    /RANKS_DISAGREE expected/,
  ],
  [
    "does not look at the numbers of answers",
    hears((event, state) => (event.type === "released" ? { ...event, seq: state.ranks[event.rank]?.seq ?? 0 } : event)),
    /UNEXPECTED_MESSAGE expected/,
  ],
  [
    "goes on after the end",
    () => (state, event) =>
      state.ended === null ? transition(state, event) : { state, commands: [{ type: "epochMoved", epoch: 1 }] },
    /after the end/,
  ],
  [
    "does one thing too late",
    () => {
      let held: Command[] = [];
      return (state, event) => {
        const next = transition(state, event);
        const all = [...held, ...next.commands];
        held = all.filter((command) => command.type === "measureRoom");
        return {
          state: next.state,
          commands: all.filter((command) => !next.commands.includes(command) || !held.includes(command)),
        };
      };
    },
    /possible before and not done|expected, found/,
  ],
  [
    "forgets that a rank exported",
    remembers((state) => withRanks(state, () => ({ exported: false }))),
    /waits for nothing|possible before/,
  ],
  [
    "tells nobody which GPU lacks room",
    commands((command) => (command.type === "end" ? [{ ...command, gpus: [] }] : [command])),
    /the GPUs without room expected/,
  ],
  [
    "ends every run well",
    commands((command) =>
      command.type === "end" ? [{ ...command, reason: "finished", exitCode: 0, failure: null }] : [command],
    ),
    /expected, found a good end/,
  ],
];

describe("a machine that", () => {
  const scenarios = fc.sample(scenario, { numRuns: 8_000, seed: 11 });

  it.each(broken)("%s is found", { timeout: 60_000 }, (_, machine, expected) => {
    expect(violationOf(machine, scenarios) ?? "").toMatch(expected);
  });
});
