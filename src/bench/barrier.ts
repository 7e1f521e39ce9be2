/**
 * A barrier of separate Python client processes through the controller's own server, against a gloo barrier of as
 * many. Not the state machine: a handoff is more than a barrier, so nothing that gloo does could stand beside it.
 */
import { randomBytes } from "node:crypto";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { type Connection, Server } from "../controller/server.js";
import { BatonError } from "../errors.js";
import { libbatonPath, processInfo } from "../native.js";
import { type Failure, type FromController, PROTOCOL_VERSION } from "../protocol/messages.js";
import { gloo, type Rounds, runPython } from "./processes.js";
import { type BenchRow, benchRow, percentile } from "./row.js";

const CLIENTS = 8;
/** Of ours and of the peer, after the same rounds to warm up (V8 compiles the hot code in them). */
const ROUNDS = 1500;
const WARM_UP_ROUNDS = 500;

/** How many times faster than the peer it is to be, at these shares of the rounds. */
const GOALS: readonly (readonly [share: number, times: number])[] = [
  [0.5, 15],
  [0.99, 30],
];

const WELCOME: FromController = {
  type: "welcome",
  protocol: PROTOCOL_VERSION,
  run: "bench",
  simulated: true,
  silenceSeconds: 30,
  engines: 1,
  tensorParallel: CLIENTS,
  maxModelLength: 64,
  logprobSequences: 0,
  verifyFrozen: 0,
};

/** Opens when every client has arrived. `broken` is told what no client of ours does. */
function serve(path: string, token: string, broken: (failure: Failure) => void): Server {
  const present = new Set<Connection>();
  return new Server(path, token, {
    connected: (connection) => connection.send(WELCOME),
    message: (connection, message) => {
      if (message.type !== "arrive") return;
      present.add(connection);
      if (present.size < CLIENTS) return;
      for (const waiting of present) waiting.send({ type: "opened", epoch: message.epoch });
      present.clear();
    },
    // A client that ends too early fails by itself, with its own words.
    died: () => {},
    lost: () => {},
    invalid: (_, failure) => broken(failure),
    refused: broken,
  });
}

async function ourRounds(python: string, folder: string): Promise<number[]> {
  const path = join(folder, "bench.sock");
  const token = randomBytes(16).toString("hex");
  let server: Server | undefined;
  const broken = new Promise<never>((_, reject) => {
    server = serve(path, token, (failure) => reject(new BatonError(failure)));
  });
  const environment = {
    BATON_SOCKET: path,
    BATON_TOKEN: token,
    BATON_LIBRARY: libbatonPath(),
    BATON_CONTROLLER_PID: String(process.pid),
    BATON_CONTROLLER_START: String(processInfo(process.pid)?.startTime ?? 0n),
  };
  try {
    const clients = Array.from({ length: CLIENTS }, (_, index) =>
      runPython(
        python,
        "baton.bench.barrier_client",
        [index, CLIENTS, ROUNDS, WARM_UP_ROUNDS].map(String),
        environment,
      ),
    );
    const rounds = (await Promise.race([Promise.all(clients), broken])) as Rounds[];
    return rounds.flatMap(({ seconds }) => [...seconds]);
  } finally {
    server?.close();
  }
}

const WHY_NOT_WITH_CORES =
  "the goal is about a machine where eight processes fight for two cores; here each of the peer's has one of its own, " +
  "while ours are answered in turn by one server";

export async function benchBarrier(python: string, folder: string): Promise<BenchRow[]> {
  const ours = await ourRounds(python, folder);
  const peer = await gloo(python, folder, "barrier", CLIENTS, ROUNDS, WARM_UP_ROUNDS);
  return GOALS.map(([share, times]) => {
    const peerUs = percentile(peer, share) * 1e6;
    return benchRow({
      subject: "barrier through the server",
      metric: `p${share * 100}, ${CLIENTS} processes`,
      unit: "us",
      ours: percentile(ours, share) * 1e6,
      peer: peerUs,
      limit: peerUs / times,
      better: "lower",
      goal: 1,
      simulated: false,
      ...(availableParallelism() < CLIENTS ? {} : { why: WHY_NOT_WITH_CORES }),
      note: "arrive and opened of Python clients through the controller's server, as every client sees it; peer: torch.distributed barrier over gloo; limit: the goal, 15 times faster than the peer at p50 and 30 times at p99",
    });
  });
}
