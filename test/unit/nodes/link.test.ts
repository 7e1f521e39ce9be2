/** Controllers that meet over real sockets. */
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { afterEach, describe, expect, it, vi } from "vitest";
import { encodeFrame } from "../../../src/nodes/frames.js";
import { type Facts, Hub, Member } from "../../../src/nodes/index.js";
import { DIED, EXCEPTION, failure } from "./hub-world.js";

const opened: { close(): void }[] = [];
afterEach(() => {
  for (const one of opened.splice(0).reverse()) one.close();
});

interface Given {
  readonly key?: string;
  readonly facts?: Facts;
  readonly meetMs?: number;
  readonly silenceMs?: number;
  readonly say?: (line: string) => void;
}

async function freePort(): Promise<number> {
  const server = await listening(createServer());
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function listening(server: Server): Promise<Server> {
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

async function hub(port: number, count: number, given: Given = {}): Promise<Hub> {
  const { key = "", meetMs = 5_000, silenceMs = 5_000 } = given;
  const one = await Hub.listen({ count, run: "a run", port, key, meetMs, silenceMs, finishMs: 5_000 });
  opened.push(one);
  return one;
}

async function member(port: number, node: number, given: Given = {}): Promise<Member> {
  const { key = "", facts = { baton: "1" }, meetMs = 5_000, silenceMs = 5_000, say = () => {} } = given;
  const own = { facts, command: [], meetMs, finishMs: 5_000, say };
  const options = { node, address: "127.0.0.1", port, key, silenceMs, ...own };
  const one = await Member.meet(options);
  opened.push(one);
  return one;
}

async function both(given: Given = {}): Promise<readonly [Member, Member, Hub]> {
  const port = await freePort();
  const there = await hub(port, 2, given);
  const [zero, one] = await Promise.all([member(port, 0, given), member(port, 1, given)]);
  return [zero, one, there];
}

/**
 * Carries connections to a port. `lose` ends those that there are for whoever has connected; the other end hears nothing
 * of it, as when a machine between them is gone.
 */
async function lossy(to: number) {
  const sockets: Socket[] = [];
  let greeted = 0;
  const server = await listening(
    createServer((socket) => {
      const onward = createConnection(to, "127.0.0.1");
      sockets.push(socket);
      socket.on("data", (bytes) => onward.write(bytes));
      let answers = 0;
      onward.on("data", (bytes) => {
        socket.write(bytes);
        // The challenge, then the welcome.
        if (++answers === 2) greeted++;
      });
      for (const end of [socket, onward]) end.on("error", () => {});
      opened.push({ close: () => onward.destroy() });
    }),
  );
  opened.push(server);
  const lose = (): void => {
    for (const socket of sockets.splice(0)) socket.destroy();
  };
  const joined = (times: number): Promise<void> => vi.waitFor(() => expect(greeted).toBe(times), { timeout: 3_000 });
  return { port: (server.address() as { port: number }).port, joined, lose };
}

const failureOf = (one: Member): Promise<string> =>
  new Promise((resolve) => one.onFailure(({ code, message }) => resolve(`${code}: ${message}`)));

describe("controllers", () => {
  it("meet whichever comes first, and end together with a report of both", async () => {
    const port = await freePort();
    const early = member(port, 1, { key: "k" });
    await new Promise((resolve) => setTimeout(resolve, 100));
    await hub(port, 2, { key: "k" });
    const [one, zero] = await Promise.all([early, member(port, 0, { key: "k" })]);
    expect([zero.run, one.run]).toEqual(["a run", "a run"]);
    expect(await Promise.all([zero.verdict(null), one.verdict(null)])).toEqual([null, null]);
    const report = { big: "x".repeat(100_000) };
    const [all, none] = await Promise.all([zero.report("/0", {}), one.report("/1", report)]);
    expect(none).toBeNull();
    expect(all?.map(({ folder, report: given }) => [folder, given])).toEqual([
      ["/0", {}],
      ["/1", report],
    ]);
  });

  it("refuse what differs, on both", async () => {
    const port = await freePort();
    await hub(port, 2);
    const [a, b] = await Promise.allSettled([
      member(port, 0, { facts: { baton: "0.1.0", "package torch": "2.11.0" } }),
      member(port, 1, { facts: { baton: "0.2.0" } }),
    ]);
    for (const one of [a, b]) {
      expect(one).toMatchObject({ status: "rejected", reason: { code: "NODES_DIFFER" } });
      const { found } = (one as PromiseRejectedResult).reason as { found: string };
      expect(found).toMatch(/baton: 0\.1\.0 on node 0 .*, 0\.2\.0 on node 1/);
      expect(found).toMatch(/package torch: 2\.11\.0 on node 0 .*, nothing on node 1/);
    }
  });

  it("hear of one that does not begin, whether it is the first or another, and whoever comes when", async () => {
    const refusal = failure("MODEL_MISSING", "no such folder");
    const told = { code: "NODE_FAILED", message: expect.stringContaining("MODEL_MISSING happened") };
    const port = await freePort();
    const there = await hub(port, 3, { key: "k" });
    const waiting = expect(member(port, 0, { key: "k" })).rejects.toMatchObject(told);
    const point = { node: 2, address: "127.0.0.1", port, key: "k", silenceMs: 5_000 };
    expect(await Member.refuse(point, refusal, 1_000)).toBe(true);
    await waiting;
    const late = expect(member(port, 1, { key: "k" })).rejects.toMatchObject(told);
    const before = performance.now();
    await there.allTold(4_000);
    expect(performance.now() - before).toBeLessThan(2_000);
    await late;

    const other = await freePort();
    const early = expect(member(other, 1)).rejects.toMatchObject({ code: "NODE_FAILED" });
    const first = await hub(other, 2);
    first.refuse(refusal);
    await first.allTold(4_000);
    await early;
    expect(await Member.refuse({ ...point, port: await freePort() }, refusal, 100)).toBe(false);
  });

  it("may come again on another connection, while the first counts as alive; two of one number may not", async () => {
    const port = await freePort();
    await hub(port, 2);
    const relay = await lossy(port);
    const one = member(relay.port, 1);
    await relay.joined(1);
    relay.lose();
    await relay.joined(2);
    const zero = await member(port, 0);
    expect((await one).run).toBe(zero.run);

    const another = await freePort();
    await hub(another, 2);
    const both = await Promise.allSettled([member(another, 1), member(another, 1)]);
    expect(both).toMatchObject([{ reason: { code: "NODE_TWICE" } }, { reason: { code: "NODE_TWICE" } }]);
  });

  it("have the same key, or do not meet: the stranger learns nothing of the recipe, and joins no run", async () => {
    const port = await freePort();
    await hub(port, 2, { key: "right", meetMs: 1_000 });
    const [zero, stranger] = await Promise.allSettled([
      member(port, 0, { key: "right" }),
      member(port, 1, { key: "wrong" }),
    ]);
    expect(stranger).toMatchObject({ reason: { code: "NODES_KEY_DIFFERS" } });
    expect(zero).toMatchObject({ reason: { code: "NODE_MISSING" } });
  });

  it("give up on a node 0 that is not there, or is something else", async () => {
    await expect(member(await freePort(), 1, { meetMs: 700 })).rejects.toMatchObject({
      code: "NODE_MISSING",
      found: "ECONNREFUSED",
    });
    const other = await listening(createServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n")));
    opened.push(other);
    const { port } = other.address() as { port: number };
    await expect(member(port, 1, { meetMs: 700 })).rejects.toMatchObject({ code: "NODE_MISSING" });
  });

  it("are not disturbed by connections of something else", async () => {
    const port = await freePort();
    await hub(port, 2);
    const noise = ["GET / HTTP/1.1\r\n\r\n", encodeFrame({ type: "identity", facts: {} }), Buffer.alloc(9_000, 7)];
    for (const text of noise)
      createConnection(port, "127.0.0.1")
        .on("error", () => {})
        .end(text);
    const [zero, one] = await Promise.all([member(port, 0), member(port, 1)]);
    expect(await Promise.all([zero.verdict(null), one.verdict(null)])).toEqual([null, null]);
  });

  it("hear of each other's failures: the one that failed by its own, the other by the node that did", async () => {
    const [zero, one] = await both();
    const heard = failureOf(zero);
    one.ended(DIED);
    expect(await heard).toBe("NODE_FAILED: node 1 ended the run: RANK_DIED: RANK_DIED happened");
    zero.ended({ ...DIED, code: "NODE_FAILED" });
    const [there, here] = await Promise.all([zero.verdict({ ...DIED, code: "NODE_FAILED" }), one.verdict(DIED)]);
    expect(there).toMatchObject({ code: "NODE_FAILED", found: "killed by SIGKILL" });
    expect(here).toEqual(DIED);
  });

  it("tell the cause, also when its symptom elsewhere was faster", async () => {
    const [zero, one] = await both();
    const heard = failureOf(one);
    zero.ended(EXCEPTION);
    setTimeout(() => one.ended(DIED), 100);
    const [there, here] = await Promise.all([
      zero.verdict(EXCEPTION),
      new Promise((resolve) => setTimeout(resolve, 150)).then(() => one.verdict(DIED)),
    ]);
    expect(here).toEqual(DIED);
    expect(there).toMatchObject({
      code: "NODE_FAILED",
      message: "node 1 ended the run: RANK_DIED: RANK_DIED happened",
    });
    // It had its own, so it was never told of the symptom.
    expect(await Promise.race([heard, new Promise((resolve) => setTimeout(resolve, 500, "nothing"))])).toBe("nothing");
  });

  it("are each interrupted by themselves, when the signal comes to all of them", async () => {
    const [zero, one] = await both();
    const stopped = failure("INTERRUPTED", "SIGTERM");
    const heard = failureOf(zero);
    one.ended(stopped);
    setTimeout(() => zero.ended(stopped), 100);
    expect(await Promise.race([heard, new Promise((resolve) => setTimeout(resolve, 600, "nothing"))])).toBe("nothing");
    expect((await Promise.all([zero.verdict(stopped), one.verdict(stopped)]))[1]).toEqual(stopped);
  });

  it("notice within a moment that another is gone, and within their deadline that it is silent", async () => {
    const [, one, there] = await both();
    const lost = failureOf(one);
    there.close();
    expect(await lost).toMatch(/^NODE_LOST: the controller of node 0 is gone/);
    expect(await one.verdict(null)).toMatchObject({ code: "NODE_LOST" });

    const port = await freePort();
    await hub(port, 2, { silenceMs: 300 });
    // It hears the hub, but says nothing.
    const [zero, mute] = await Promise.all([
      member(port, 0, { silenceMs: 300 }),
      member(port, 1, { silenceMs: 60_000 }),
    ]);
    const silent = failureOf(zero);
    expect(await silent).toMatch(/^NODE_LOST: the controller of node 1 is gone/);
    expect(mute.node).toBe(1);
  });

  it("do not wait for each other once the user has had enough", async () => {
    const [zero, one] = await both();
    const waiting = zero.verdict(null);
    zero.interrupted({ ...DIED, code: "INTERRUPTED" });
    expect(await waiting).toMatchObject({ code: "INTERRUPTED" });
    expect(one.node).toBe(1);
  });

  it("say so when the port is taken", async () => {
    const port = await freePort();
    await hub(port, 2);
    await expect(hub(port, 2)).rejects.toMatchObject({ code: "NODES_PORT_TAKEN", found: "EADDRINUSE" });
  });
});
