/** Controllers that meet over real sockets. */
import { createConnection, createServer, type Server } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
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
  const { key = "", facts = { baton: "1" }, meetMs = 5_000, silenceMs = 5_000 } = given;
  const say = (): void => {};
  const options = { node, address: "127.0.0.1", port, key, facts, meetMs, silenceMs, finishMs: 5_000, say };
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
