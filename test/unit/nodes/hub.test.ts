import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { allAreTold, type HubEvent } from "../../../src/nodes/hub.js";
import { DIED, EXCEPTION, failure, HubWorld } from "./hub-world.js";

describe("nodes meet", () => {
  it("and begin when the last is there", () => {
    const hub = new HubWorld();
    hub.meet();
    expect([0, 1, 2].map((node) => hub.told(node, "begin")?.run)).toEqual(["a run", "a run", "a run"]);
    expect(hub.timers.size).toBe(0);
  });

  it("or hear which of them is missing", () => {
    const hub = new HubWorld();
    hub.join(0, "a");
    hub.feed({ type: "identity", node: 0, facts: {}, command: [] });
    hub.join(2, "c");
    hub.feed({ type: "stranger", host: "d" });
    hub.fire("meet");
    const refused = hub.told(0, "refused")?.failure;
    // Node 2 has not said what it is, and node 1 nothing at all.
    expect(refused).toMatchObject({ code: "NODE_MISSING", message: "node 1, node 2 did not come within 1000 ms" });
    expect(refused?.found).toContain("a controller on d that has another key");
    expect(hub.told(2, "refused")?.failure).toEqual(refused);
  });

  it("or hear what differs between them, all of them", () => {
    const hub = new HubWorld();
    hub.meet((node) => ({ baton: "1", ranks: node === 2 ? "4" : "8" }));
    for (const node of [0, 1, 2]) {
      expect(hub.told(node, "refused")?.failure).toMatchObject({
        code: "NODES_DIFFER",
        found: "ranks: 8 on node 0 (host0), 4 on node 2 (host2)",
      });
    }
    expect(hub.told(0, "begin")).toBeUndefined();
  });

  it("or that two are the same one, or that one counts more of them", () => {
    const twice = new HubWorld();
    twice.join(1, "a");
    twice.join(1, "b");
    expect(twice.told(1, "refused")?.failure).toMatchObject({ code: "NODE_TWICE", found: "one on a, and one on b" });
    const more = new HubWorld();
    more.join(3, "d");
    expect(more.told(3, "refused")?.failure.code).toBe("NODES_DIFFER");
  });

  it.each([
    ["and that is known here", true],
    ["which is not known here yet", false],
  ])("again, when one lost its connection while it waited, %s", (_, known) => {
    const hub = new HubWorld(2);
    hub.join(1, "b");
    hub.feed({ type: "identity", node: 1, facts: { baton: "0" }, command: [] });
    if (known) hub.feed({ type: "gone", node: 1, found: "reset" });
    hub.join(1, "b");
    // What it said on the connection before counts no more.
    hub.join(0, "a");
    hub.feed({ type: "identity", node: 0, facts: { baton: "1" }, command: [] });
    expect(hub.told(0, "begin")).toBeUndefined();
    hub.feed({ type: "identity", node: 1, facts: { baton: "1" }, command: [] });
    expect(hub.told(1, "begin")).toBeDefined();
  });

  it("or hear that one of them does not begin, those too that come later", () => {
    const hub = new HubWorld();
    hub.join(0, "a");
    hub.join(1, "b");
    hub.feed({ type: "refusal", node: 1, host: "b", failure: failure("MODEL_MISSING", "no such folder") });
    expect(hub.told(1, "refused")?.failure.code).toBe("MODEL_MISSING");
    const told = {
      ...{ code: "NODE_FAILED", found: "no such folder" },
      message: "node 1 (b) did not begin: MODEL_MISSING: MODEL_MISSING happened",
    };
    expect(hub.told(0, "refused")?.failure).toMatchObject(told);
    expect(allAreTold(hub.state)).toBe(false);
    hub.join(2, "c");
    expect(hub.told(2, "refused")?.failure).toMatchObject(told);
    expect([allAreTold(hub.state), hub.timers.size]).toEqual([true, 0]);
  });

  it("and hear of commands that are not the same", () => {
    const hub = new HubWorld(2);
    for (const node of [0, 1]) {
      hub.join(node, `h${node}`);
      const command = ["torchrun", "train.py", "--lr", `1e-${node + 4}`];
      hub.feed({ type: "identity", node, facts: {}, command });
    }
    expect(hub.told(1, "begin")?.warning).toBe(
      "the nodes' commands differ: after `--lr` `1e-4` on node 0 (h0), `1e-5` on node 1 (h1); the run goes on",
    );
  });
});

describe("a run ends on all nodes", () => {
  it("in good order when it has on each, with the reports of all for node 0", () => {
    const hub = new HubWorld().meet();
    for (const node of [2, 0, 1]) {
      hub.feed({ type: "ended", node, failure: null });
      expect(hub.told(0, "verdict")).toBeUndefined();
      hub.feed({ type: "stopped", node, failure: null });
    }
    expect(hub.told(1, "verdict")).toMatchObject({ node: null, failure: null });
    for (const node of [0, 1, 2]) hub.feed({ type: "report", node, folder: `/${node}`, report: { steps: node } });
    expect(hub.told(0, "reports")?.nodes.map(({ report }) => report)).toEqual([
      { steps: 0 },
      { steps: 1 },
      { steps: 2 },
    ]);
    expect(hub.state.stage).toBe("over");
  });

  it("as soon as one fails", () => {
    const hub = new HubWorld().meet();
    const said = hub.feed({ type: "ended", node: 1, failure: DIED });
    expect(said.map(({ node, message }) => [node, message.type])).toEqual([
      [0, "end"],
      [2, "end"],
    ]);
    expect(hub.timers.has("stop")).toBe(true);
  });

  it("as soon as one is gone", () => {
    const hub = new HubWorld().meet();
    hub.feed({ type: "gone", node: 2, found: "reset" });
    expect(hub.told(1, "end")).toMatchObject({ node: 2, failure: { code: "NODE_LOST", found: "reset" } });
  });

  it("with the failure that is nearest to the cause, whoever spoke first", () => {
    const hub = new HubWorld().meet();
    hub.feed({ type: "ended", node: 0, failure: EXCEPTION });
    hub.feed({ type: "ended", node: 2, failure: failure("RANK_DIED", "killed by SIGABRT") });
    hub.feed({ type: "ended", node: 1, failure: DIED });
    const better = { ...DIED, found: "killed by SIGKILL, by the launcher" };
    for (const [node, own] of [EXCEPTION, better, null].entries()) hub.feed({ type: "stopped", node, failure: own });
    expect(hub.told(0, "verdict")).toMatchObject({ node: 1, failure: better });
  });

  it("with the node that is gone, rather than with what the others say of it", () => {
    const hub = new HubWorld().meet();
    hub.feed({ type: "ended", node: 0, failure: DIED });
    hub.feed({ type: "gone", node: 1, found: "reset" });
    hub.feed({ type: "stopped", node: 0, failure: DIED });
    hub.feed({ type: "stopped", node: 2, failure: null });
    expect(hub.told(2, "verdict")).toMatchObject({ node: 1, failure: { code: "NODE_LOST" } });
  });

  it("even when one of them never says that it has stopped, or never reports", () => {
    const hub = new HubWorld().meet();
    hub.feed({ type: "ended", node: 1, failure: DIED });
    hub.feed({ type: "stopped", node: 1, failure: DIED });
    hub.feed({ type: "stopped", node: 0, failure: null });
    hub.fire("stop");
    expect(hub.told(0, "verdict")).toMatchObject({ node: 1 });
    hub.feed({ type: "report", node: 0, folder: "/0", report: {} });
    hub.fire("report");
    expect(hub.told(0, "reports")?.nodes.map(({ report }) => report)).toEqual([{}, null, null]);
  });

  it("by a deadline, when the others do not finish after the first that has", () => {
    const hub = new HubWorld().meet();
    hub.feed({ type: "ended", node: 0, failure: null });
    hub.fire("finish");
    expect(hub.told(0, "end")).toMatchObject({
      node: null,
      failure: { code: "DEADLINE", message: "node 1, node 2 did not finish within 5000 ms of the first node that did" },
    });
  });

  it("when their ranks are not one job", () => {
    const ranks = (first: number, world = 6) => ({ first, local: 2, world });
    const wrong = (given: readonly ReturnType<typeof ranks>[]) => {
      const hub = new HubWorld().meet();
      given.forEach((one, node) => {
        hub.feed({ type: "ranks", node, ranks: one });
      });
      return hub.told(0, "end")?.failure.found;
    };
    expect(wrong([ranks(0), ranks(4), ranks(2)])).toBeUndefined();
    expect(wrong([ranks(0, 2)])).toBe("a job of its own on node 0, of 2 ranks");
    expect(wrong([ranks(0), ranks(2), ranks(2)])).toBe("a job of 6 ranks there, from rank 2 on");
    expect(wrong([ranks(0), ranks(2), ranks(4, 8)])).toBe("a job of 8 ranks there, from rank 4 on");
  });
});

describe("whatever comes in whatever order", () => {
  const node = fc.integer({ min: 0, max: 2 });
  const some = fc.constantFrom(null, DIED, EXCEPTION);
  const event: fc.Arbitrary<HubEvent> = fc.oneof(
    fc.record({ type: fc.constant("gone" as const), node, found: fc.constant("reset") }),
    fc.record({ type: fc.constant("phase" as const), node, phase: fc.constantFrom("train", "sync") }),
    fc.record({ type: fc.constant("ended" as const), node, failure: some }),
    fc.record({ type: fc.constant("stopped" as const), node, failure: some }),
    fc.record({ type: fc.constant("report" as const), node, folder: fc.constant("/"), report: fc.constant({}) }),
    fc.record({ type: fc.constant("timeUp" as const), timer: fc.constantFrom("finish", "stop", "report") }),
  );

  it("every failure is told at once, there is one verdict, and it is not a good one when anything failed", () => {
    fc.assert(
      fc.property(fc.array(event, { maxLength: 25 }), (events) => {
        const hub = new HubWorld().meet();
        for (const one of events) {
          if (one.type === "timeUp" && !hub.timers.has(one.timer)) continue;
          const before = hub.state;
          const said = hub.feed(one);
          const isNew = hub.state.failures.length > before.failures.length;
          if (!isNew || before.stage !== "running") continue;
          const blamed = hub.state.failures.at(-1)?.node;
          for (const [other, { here }] of hub.state.members) {
            const told = said.some(({ node: to, message }) => to === other && message.type === "end");
            expect(told || !here || other === blamed).toBe(true);
          }
        }
        // Time passes: whoever is still here hears how it ended.
        for (const [one, { here, ended }] of hub.state.members) {
          if (here && !ended) hub.feed({ type: "ended", node: one, failure: null });
        }
        for (const timer of ["finish", "stop", "report"] as const) hub.fire(timer);
        for (const [one, { here }] of hub.state.members) {
          const verdicts = hub.said.filter(({ node: to, message }) => to === one && message.type === "verdict");
          expect(verdicts.length).toBeLessThanOrEqual(1);
          if (here) expect(verdicts).toHaveLength(1);
          for (const { message } of verdicts) {
            const failed = message.type === "verdict" && message.failure !== null;
            expect(failed).toBe(hub.state.failures.length > 0);
          }
        }
        expect(hub.state.stage).toBe("over");
        expect(hub.timers.size).toBe(0);
      }),
      { numRuns: 20_000 },
    );
  });
});
