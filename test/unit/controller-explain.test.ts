import { describe, expect, it } from "vitest";
import { explain, type Surroundings } from "../../src/controller/explain.js";
import type { EndCommand } from "../../src/controller/node.js";
import type { ProcessExit } from "../../src/phases/events.js";
import { died } from "../../src/phases/failures.js";

const KILLED: ProcessExit = { code: null, signal: "SIGKILL" };

function ended(client: Parameters<typeof died>[0]): EndCommand {
  return { type: "end", reason: "failed", exitCode: 1, failure: died(client, KILLED, "train"), gpus: [] };
}

/** `exit` null: the guard lives. */
function beside(commandEnded: boolean, exit: ProcessExit | null): Surroundings {
  return {
    nvml: { memory: () => Promise.reject(), processes: () => Promise.reject() } as never,
    ledger: {} as never,
    nameOf: () => null,
    stopped: [],
    pausedMs: 0,
    stoppedDeadlineMs: 1_000,
    children: [
      {
        name: "launcher",
        commandEnded: () => commandEnded,
        ended: exit === null ? new Promise(() => {}) : Promise.resolve(exit),
      },
    ],
  };
}

const rank = { role: "rank", index: 0 } as const;

describe("a rank that died", () => {
  it("with a launcher that was killed is not the cause", async () => {
    expect(await explain(ended(rank), beside(true, KILLED))).toMatchObject({
      code: "LAUNCHER_FAILED",
      found: "killed by SIGKILL",
    });
  });

  it("before its launcher is the cause, however that ends", async () => {
    expect(await explain(ended(rank), beside(false, KILLED))).toMatchObject({ code: "RANK_DIED" });
    expect(await explain(ended(rank), beside(true, { code: 1, signal: null }))).toMatchObject({ code: "RANK_DIED" });
    expect(await explain(ended(rank), beside(true, null))).toMatchObject({ code: "RANK_DIED" });
  });
});

it("an engine that died is the cause whatever its launcher does", async () => {
  const end = ended({ role: "engine", index: 0 });
  expect(await explain(end, beside(true, KILLED))).toMatchObject({ code: "ENGINE_DIED" });
});
