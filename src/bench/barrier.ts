/** Phase barrier of separate Python client processes, against a gloo barrier of as many. */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { type Channel, libbatonPath, listen, processInfo } from "../native.js";
import { decodeFromClient, encodeMessage } from "../protocol/frames.js";
import { PROTOCOL_VERSION } from "../protocol/messages.js";
import { gloo, type Rounds, runPython } from "./processes.js";
import { type BenchRow, benchRow, percentile } from "./row.js";

const CLIENTS = 8;
const ROUNDS = 2000;
const PEER_ROUNDS = 500;

const welcome = encodeMessage({
  type: "welcome",
  protocol: PROTOCOL_VERSION,
  run: "bench",
  simulated: true,
  silenceSeconds: 30,
  engines: 1,
  tensorParallel: CLIENTS,
  logprobSequences: 0,
  verifyFrozen: 0,
});

/** The controller's end of the barrier: the same listener, frames and checks as in a run. */
function serve(path: string, token: string): { close(): void } {
  const present = new Set<Channel>();
  const channels = new Set<Channel>();
  const listener = listen(path, (channel) => {
    channels.add(channel);
    channel.onClose = () => channels.delete(channel);
    channel.onFrame = (payload) => {
      const message = decodeFromClient(payload);
      if (message.type === "hello") {
        if (message.token !== token) throw new Error("a stranger joined the benchmark");
        channel.send(welcome);
      } else if (message.type === "arrive") {
        present.add(channel);
        if (present.size < CLIENTS) return;
        const opened = encodeMessage({ type: "opened", epoch: message.epoch });
        for (const waiting of present) waiting.send(opened);
        present.clear();
      }
    };
  });
  return {
    close() {
      listener.close();
      for (const channel of channels) channel.close();
    },
  };
}

export async function benchBarrier(python: string, folder: string): Promise<BenchRow[]> {
  const path = join(folder, "bench.sock");
  const token = randomBytes(16).toString("hex");
  const server = serve(path, token);
  const environment = {
    BATON_SOCKET: path,
    BATON_TOKEN: token,
    BATON_LIBRARY: libbatonPath(),
    BATON_CONTROLLER_PID: String(process.pid),
    BATON_CONTROLLER_START: String(processInfo(process.pid)?.startTime ?? 0n),
  };
  let ours: readonly number[];
  try {
    const clients = Array.from({ length: CLIENTS }, (_, index) =>
      runPython(python, "baton.bench.barrier_client", [index, CLIENTS, ROUNDS].map(String), environment),
    );
    ours = ((await Promise.all(clients)) as Rounds[]).flatMap((client) => [...client.seconds]);
  } finally {
    server.close();
  }
  const peer = await gloo(python, folder, "barrier", CLIENTS, PEER_ROUNDS);
  return [0.5, 0.99].map((share) =>
    benchRow({
      subject: "phase barrier",
      metric: `p${share * 100}, ${CLIENTS} processes`,
      unit: "us",
      ours: percentile(ours, share) * 1e6,
      peer: percentile(peer, share) * 1e6,
      limit: null,
      better: "lower",
      simulated: false,
      note: "arrive and opened of Python clients through the controller's socket; peer: torch.distributed barrier over gloo",
    }),
  );
}
