import { describe, expect, it } from "vitest";
import { differences, factsOf, type Identity } from "../../../src/nodes/facts.js";
import { type RecipeInput, recipeFrom } from "../../../src/recipe/index.js";

function identity(input: Partial<RecipeInput> = {}, other: Partial<Identity> = {}): Identity {
  return {
    ...{
      version: "0.1.0",
      others: {},
      python: "3.12",
      packages: { torch: "2.11.0" },
      modelConfig: '{"a": 1, "b": {"c": 2, "d": 3}}',
    },
    recipe: recipeFrom({ engine: { model: "m" }, gpus: { count: 8 }, ...input }, "/somewhere"),
    ...other,
  };
}

const compared = (...nodes: Identity[]): string | null =>
  differences(nodes.map((one, node) => ({ host: `h${node}`, facts: factsOf(one) })))?.found ?? null;

describe("nodes", () => {
  it("may differ in what is their own", () => {
    const own = (rank: number): Partial<RecipeInput> => ({
      engine: { model: `/disk${rank}/m` },
      ...{ nodes: { count: 2, rank, address: `a${rank}`, keyFile: `k${rank}` }, out: `o${rank}` },
    });
    expect(compared(identity(own(0)), identity(own(1), { modelConfig: '{"b":{"d":3,"c":2},"a":1}' }))).toBeNull();
  });

  it("may not differ in anything else, which is named with its values", () => {
    expect(compared(identity(), identity({ gpus: { count: 4 } }))).toBe(
      "gpus.count: 8 on node 0 (h0), 4 on node 1 (h1)",
    );
    expect(compared(identity({ grpo: { loss: "grpo" } }), identity({ grpo: { loss: "bnpo" } }))).toContain("grpo.loss");
    expect(compared(identity(), identity(), identity({}, { version: "0.2.0" }))).toContain("0.2.0 on node 2 (h2)");
    expect(compared(identity(), identity({}, { packages: { torch: "2.11.0", vllm: "0.26.0" } }))).toBe(
      "package vllm: nothing on node 0 (h0), 0.26.0 on node 1 (h1)",
    );
    expect(compared(identity(), identity({}, { others: { problems: "2 prompts" } }))).toContain(
      "problems: nothing on node 0",
    );
    expect(compared(identity(), identity({}, { modelConfig: "{}" }))).toContain("config.json of engine.model");
  });

  it("may not differ behind the end of a long value", () => {
    const long = (end: string) => identity({ grpo: { system: "x".repeat(5_000) + end } });
    expect(compared(long("a"), long("b"))).toContain("grpo.system");
  });

  it("name a few of many differences", () => {
    const other = identity({
      deadlines: { startMs: 1, trainMs: 1, wakeMs: 1, planMs: 1, syncMs: 1, sleepMs: 1, stopMs: 1 },
    });
    expect(compared(identity(), other)).toMatch(/; and 1 more$/);
  });
});
