import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Facts } from "../../../src/doctor/facts.js";
import { judgeModel, type ModelPlan, needsOf } from "../../../src/doctor/model.js";
import { type ModelShape, readShape } from "../../../src/doctor/parameters.js";
import { GIB, type Mutable, machine, withoutGpu } from "./machine.js";

const tiny = join(import.meta.dirname, "../../../python/src/baton/examples/tiny_model");

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-model-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** config.json alone, without weights. */
function shapeOf(config: Record<string, unknown>): ModelShape {
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  return readShape(folder);
}

const qwen7b = {
  ...{ model_type: "qwen2", hidden_size: 3584, num_hidden_layers: 28, num_attention_heads: 28 },
  ...{ num_key_value_heads: 4, intermediate_size: 18_944, vocab_size: 152_064, tie_word_embeddings: false },
};

describe("the parameters of a model", () => {
  it("are counted in its checkpoint, and the same is computed from its config", () => {
    const stored = readShape(tiny);
    expect(stored).toMatchObject({ source: "safetensors", layers: 2, kvHeads: 4, headSize: 16 });
    cpSync(join(tiny, "config.json"), join(folder, "config.json"));
    expect(readShape(folder)).toEqual({ ...stored, source: "config.json" });
  });

  it("are those that the authors name", () => {
    // Qwen2.5-7B, Qwen3-0.6B, Llama-3.1-8B and SmolLM2-135M as published.
    expect(shapeOf(qwen7b).parameters).toBe(7_615_616_512);
    const qwen3 = {
      ...{ model_type: "qwen3", hidden_size: 1024, num_hidden_layers: 28, num_attention_heads: 16, head_dim: 128 },
      ...{ num_key_value_heads: 8, intermediate_size: 3072, vocab_size: 151_936, tie_word_embeddings: true },
    };
    expect(shapeOf(qwen3).parameters).toBe(596_049_920);
    const llama = {
      ...{ model_type: "llama", hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32 },
      ...{ num_key_value_heads: 8, intermediate_size: 14_336, vocab_size: 128_256 },
    };
    expect(shapeOf(llama).parameters).toBe(8_030_261_248);
    const smol = {
      ...{ model_type: "llama", hidden_size: 576, num_hidden_layers: 30, num_attention_heads: 9 },
      ...{ num_key_value_heads: 3, intermediate_size: 1536, vocab_size: 49_152, tie_word_embeddings: true },
    };
    expect(shapeOf(smol).parameters).toBe(134_515_008);
  });

  it("of a config without sizes are an error that says what is missing", () => {
    const refused = (config: Record<string, unknown>, expected: string, found: string): void =>
      expect(() => shapeOf(config)).toThrow(expect.objectContaining({ code: "MODEL_CONFIG_INVALID", expected, found }));
    refused({ num_attention_heads: 4 }, "`hidden_size`, a number", "no such key");
    refused({ ...qwen7b, hidden_size: "wide" }, "`hidden_size`, a number", '"wide"');
    refused({ ...qwen7b, num_hidden_layers: 0 }, "`num_hidden_layers`, at least 1", "0");
    refused({ ...qwen7b, text_config: 3 }, "a map", "3");
  });

  it("of another architecture are unknown, and so is a broken checkpoint", () => {
    expect(shapeOf({ ...qwen7b, model_type: "mixtral" })).toMatchObject({ parameters: null, source: null });
    writeFileSync(join(folder, "model.safetensors"), "not one");
    expect(shapeOf({ ...qwen7b, model_type: "mixtral" }).parameters).toBeNull();
  });
});

const plan = (changes: Partial<ModelPlan> = {}): ModelPlan => ({
  folder: "/models/qwen",
  config: { num_attention_heads: 28, num_key_value_heads: 4, intermediate_size: 18_944 },
  shape: { layers: 28, kvHeads: 4, headSize: 128, parameters: 7_615_616_512, source: "config.json" },
  ranks: 2,
  zero: 3,
  tensorParallel: 1,
  dtype: "bfloat16",
  maxModelLength: 2048,
  maxSequences: 64,
  ...changes,
});

const verdicts = (facts: Facts, changes: Partial<ModelPlan> = {}): string[] =>
  judgeModel(facts, plan(changes)).map(({ code, verdict }) => `${code}:${verdict}`);

const small = (change: (facts: Mutable<Facts>) => void): Facts => machine(change);

describe("what a model needs", () => {
  it("is divided among the ranks as its ZeRO stage divides it", () => {
    const parameters = 1_000_000_000;
    const [one, two, three] = ([1, 2, 3] as const).map((zero) => needsOf(plan({ zero, ranks: 4 }), parameters));
    expect(one?.stateBytes).toBe(2 * parameters + (12 * parameters) / 4);
    expect(two?.stateBytes).toBe(one?.stateBytes);
    expect(three?.stateBytes).toBe((14 * parameters) / 4);
    // The arena has what is live and a sixteenth more; ZeRO-3 has its gradients' buffer besides.
    expect(one?.arenaBytes).toBeGreaterThan((one?.stateBytes ?? 0) * (17 / 16));
    expect(three?.arenaBytes).toBeGreaterThan(((16 * parameters) / 4) * (17 / 16));
    expect(one?.weightBytes).toBe(2 * parameters);
    expect(needsOf(plan({ tensorParallel: 4 }), parameters).weightBytes).toBe(parameters / 2);
  });

  it("counts the cache as the engine does", () => {
    // 2 x 4 heads x 128 x 16 tokens x 2 bytes x 28 layers a block; 129 blocks a sequence, and one.
    expect(needsOf(plan(), 1).cacheBytes).toBe(2 * 4 * 128 * 16 * 2 * 28 * (64 * 129 + 1));
    expect(needsOf(plan({ tensorParallel: 4 }), 1).cacheBytes).toBe(2 * 128 * 16 * 2 * 28 * (64 * 129 + 1));
  });
});

describe("whether a model fits", () => {
  it("a large machine has room", () => {
    expect(verdicts(machine())).toEqual(["MODEL_SIZE:ok", "GPU_TOO_SMALL:ok", "HOST_TOO_SMALL:ok"]);
  });

  it("a GPU that is too small is a problem, with the words of a run", () => {
    const facts = small(({ nvml }) => {
      for (const device of nvml.devices) device.totalBytes = 40 * GIB;
    });
    expect(verdicts(facts)).toContain("GPU_TOO_SMALL:problem");
    expect(judgeModel(facts, plan())[1]?.message).toBe(
      "GPU 0 is too small for the training state (parameters, masters, moments)",
    );
  });

  it("a host without room for the arenas is a problem, also by its control group", () => {
    const host = small((facts) => {
      facts.host.memory = { totalBytes: 120 * GIB, availableBytes: 100 * GIB };
    });
    expect(verdicts(host)).toContain("HOST_TOO_SMALL:problem");
    const group = small((facts) => {
      facts.host.cgroups = [{ version: 2, path: "/j", limitBytes: 100 * GIB, usedBytes: 0, reclaimableBytes: 0 }];
    });
    expect(verdicts(group)).toContain("HOST_TOO_SMALL:problem");
    const tight = small((facts) => {
      facts.host.memory = { totalBytes: 130 * GIB, availableBytes: 122 * GIB };
    });
    expect(verdicts(tight)).toContain("HOST_TOO_SMALL:warning");
  });

  it("stand-in GPUs take their memory from the host", () => {
    const facts = withoutGpu(({ host }) => {
      host.memory = { totalBytes: 200 * GIB, availableBytes: 180 * GIB };
    });
    expect(verdicts(facts)).toContain("HOST_TOO_SMALL:problem");
    expect(verdicts(facts)).toContain("GPU_TOO_SMALL:ok");
  });

  it("what is not known is unknown", () => {
    expect(verdicts(machine(), { shape: { ...plan().shape, parameters: null } })).toEqual(["MODEL_SIZE:unknown"]);
    const facts = small(({ host, nvml }) => {
      host.memory = null;
      host.cgroups = [];
      for (const device of nvml.devices) delete device.totalBytes;
    });
    expect(verdicts(facts)).toEqual(["MODEL_SIZE:ok", "GPU_TOO_SMALL:unknown", "HOST_TOO_SMALL:unknown"]);
  });

  it("more ranks than GPUs, and heads that do not divide, are problems", () => {
    expect(verdicts(machine(), { ranks: 4 })).toContain("TOO_FEW_GPUS:problem");
    expect(verdicts(machine(), { tensorParallel: 3 })).toContain("HEADS_NOT_DIVISIBLE:problem");
  });
});
