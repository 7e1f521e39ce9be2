import { describe, expect, it } from "vitest";
import { explain, type Surroundings } from "../../src/controller/explain.js";
import type { EndCommand } from "../../src/controller/node.js";
import type { Client } from "../../src/phases/clients.js";
import type { ProcessExit } from "../../src/phases/events.js";
import { died } from "../../src/phases/failures.js";

const KILLED: ProcessExit = { code: null, signal: "SIGKILL" };

function ended(client: Parameters<typeof died>[0], exit = KILLED): EndCommand {
  return { type: "end", reason: "failed", exitCode: 1, failure: died(client, exit, "train"), gpus: [], from: null };
}

/** `exit` null: the guard lives. `ranks`: when each is seen to have ended, by how often it is asked. */
function beside(commandEnded: boolean, exit: ProcessExit | null, ranks: readonly number[] = [0]): Surroundings {
  return {
    nvml: { memory: () => Promise.reject(), processes: () => Promise.reject() } as never,
    ledger: {} as never,
    nameOf: () => null,
    stopped: [],
    pausedMs: 0,
    stoppedDeadlineMs: 1_000,
    phase: "sleep",
    members: ranks.map((asked, index) => {
      let times = 0;
      return { client: { role: "rank", index }, ended: () => times++ >= asked, exit: () => null, spoke: () => false };
    }),
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

describe("ranks that end while their launcher lives", () => {
  const told: ProcessExit = { code: null, signal: "SIGTERM" };
  const reaped: ProcessExit = { code: null, signal: null };
  const explained = async (exit: ProcessExit, ranks: readonly number[]) =>
    (await explain(ended(rank, exit), beside(false, null, ranks)))?.code;

  it("all at once have been ended by it", async () => {
    expect(await explained(told, [0, 2])).toBe("LAUNCHER_FAILED");
    expect(await explained(reaped, [0, 0, 1])).toBe("LAUNCHER_FAILED");
  });

  it("one after another, alone, or otherwise than by SIGTERM have not", async () => {
    expect(await explained(told, [0, Number.POSITIVE_INFINITY])).toBe("RANK_DIED");
    expect(await explained(told, [0])).toBe("RANK_DIED");
    expect(await explained(KILLED, [0, 0])).toBe("RANK_DIED");
    expect(await explained({ code: 1, signal: null }, [0, 0])).toBe("RANK_DIED");
  });

  it("by SIGTERM are told with who may have sent it", async () => {
    const failure = await explain(ended(rank, told), beside(false, null));
    expect(failure).toMatchObject({ found: "killed by SIGTERM", action: expect.stringContaining("scheduler") });
  });
});

describe("a rank that lost its connection to another one", () => {
  const lost: EndCommand = {
    ...{ type: "end", reason: "failed", exitCode: 1, gpus: [], from: null },
    failure: {
      code: "PEER_LOST",
      message: "rank 0: the training script failed: the connection to another rank is lost",
      ...{ expected: "", action: "", found: "RuntimeError: Connection reset by peer" },
    },
  };
  const NEVER = Number.POSITIVE_INFINITY;
  interface Rank {
    readonly endsMs: number;
    readonly exit?: ProcessExit;
    /** After its end. */
    readonly toldMs?: number;
    readonly saysMs?: number;
  }
  /** When each rank ends, how, and when it says why: in ms from now. */
  const among = async (ranks: readonly Rank[], children = beside(false, null)) => {
    const start = performance.now();
    const past = (ms: number): boolean => performance.now() - start >= ms;
    return explain(lost, {
      ...children,
      members: ranks.map(({ endsMs, exit = null, toldMs = 0, saysMs = NEVER }, index) => ({
        client: { role: "rank", index },
        ended: () => past(endsMs),
        exit: () => (past(endsMs + toldMs) ? exit : null),
        spoke: () => past(saysMs),
      })),
    });
  };
  const failing = { endsMs: 0, exit: { code: 1, signal: null }, saysMs: 0 };

  it("is what came of a death that is told a moment later", async () => {
    expect(await among([failing, { endsMs: 60, exit: KILLED, toldMs: 100 }])).toMatchObject({
      code: "RANK_DIED",
      message: "rank 1 died in phase sleep",
      found: expect.stringMatching(/^killed by SIGKILL; then rank 0: .* \(RuntimeError: Connection reset by peer\)$/),
    });
  });

  it("is not blamed on one that gave up for the same reason, whichever ended first", async () => {
    const also = { endsMs: 0, exit: { code: 1, signal: null }, saysMs: 5 };
    expect(await among([failing, also, { endsMs: 15, exit: KILLED }])).toMatchObject({
      message: "rank 2 died in phase sleep",
    });
  });

  it("says so itself when its peer was on another node", async () => {
    expect(await among([failing, { endsMs: NEVER }])).toBe(lost.failure);
  });

  it("is not blamed on one that aborts because its peer is gone", async () => {
    const aborted = { endsMs: 0, exit: { code: null, signal: "SIGABRT" } };
    for (const signal of ["SIGTERM", "SIGSEGV"]) {
      const first = { endsMs: 0, exit: { code: null, signal }, toldMs: 50 };
      expect(await among([failing, aborted, first, { endsMs: NEVER }])).toMatchObject({
        message: "rank 2 died in phase sleep",
      });
    }
  });

  it("is not blamed on one that is finished", async () => {
    const finished = { endsMs: 0, exit: { code: 0, signal: null }, saysMs: 0 };
    expect(await among([failing, finished])).toBe(lost.failure);
  });

  it("is what came of its launcher's death", async () => {
    expect(await among([failing, { endsMs: 5, exit: KILLED }], beside(true, KILLED))).toMatchObject({
      code: "LAUNCHER_FAILED",
      found: "killed by SIGKILL",
    });
  });
});

describe("an engine that lost a worker", () => {
  const TOLD: ProcessExit = { code: null, signal: "SIGTERM" };
  const lost: EndCommand = {
    ...{ type: "end", reason: "failed", exitCode: 1, gpus: [], from: { role: "engine", index: 0 } },
    failure: {
      code: "ENGINE_WORKER_DIED",
      message: "engine 0: Worker 1 of engine 0 (process 7) ended unexpectedly.",
      ...{ expected: "", action: "", found: "RuntimeError: Executor failed." },
    },
  };
  interface End {
    readonly exit: ProcessExit | null;
    /** In ms from now. */
    readonly toldMs?: number;
    readonly client?: Client;
    readonly spoke?: boolean;
  }
  /** `ends` of its workers, by tensor-parallel rank, where nothing else is said. */
  const among = async (...ends: readonly End[]) => {
    const start = performance.now();
    return explain(lost, {
      ...beside(false, null),
      members: ends.map(({ exit, toldMs = 0, client, spoke = false }, index) => ({
        client: client ?? { role: "worker", engine: 0, index },
        ended: () => exit !== null,
        exit: () => (performance.now() - start >= toldMs ? exit : null),
        spoke: () => spoke,
      })),
    });
  };

  it("names the one that was killed, and not those that the engine ended because of it", async () => {
    for (const told of [{ code: 0, signal: null }, TOLD, { code: null, signal: "SIGABRT" }]) {
      expect(await among({ exit: told }, { exit: KILLED })).toMatchObject({
        code: "WORKER_DIED",
        message: "worker 1 of engine 0 died in phase sleep",
        found: expect.stringMatching(
          /^killed by SIGKILL; then engine 0: Worker 1 .* \(RuntimeError: Executor failed\.\)$/,
        ),
      });
    }
  });

  it("names that one also when the kernel tells of the others first", async () => {
    expect(await among({ exit: TOLD }, { exit: KILLED, toldMs: 300 })).toMatchObject({
      message: "worker 1 of engine 0 died in phase sleep",
    });
    expect(await among({ exit: { code: 0, signal: null } }, { exit: { code: 1, signal: null } })).toMatchObject({
      found: expect.stringMatching(/^exited with code 1/),
    });
  });

  it("is not the work of anybody else's end", async () => {
    const finished: End = { exit: { code: 0, signal: null }, client: { role: "rank", index: 0 }, spoke: true };
    const silent: End = { exit: KILLED, client: { role: "rank", index: 1 } };
    const other: End = { exit: KILLED, client: { role: "worker", engine: 1, index: 0 } };
    const killed: End = { exit: KILLED, toldMs: 100, client: { role: "worker", engine: 0, index: 1 } };
    expect(await among(finished, silent, other, killed)).toMatchObject({
      code: "WORKER_DIED",
      message: "worker 1 of engine 0 died in phase sleep",
    });
  });

  it("says so itself when all of its workers are there", async () => {
    expect(await among({ exit: null }, { exit: null })).toBe(lost.failure);
  });
});
