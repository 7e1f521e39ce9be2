/** `baton doctor` as a user starts it, on this machine as it is. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { hasNvidiaDriver } from "../../src/cli/gpus.js";
import type { Finding } from "../../src/doctor/finding.js";
import { standinFolder } from "../../src/native.js";
import { Baton, type Ended, fixtures, processesWith, withFolder } from "./baton.js";
import { python } from "./light.js";

interface Report {
  readonly gpus: "real" | "stand-in";
  readonly exitCode: number;
  readonly findings: readonly Finding[];
}

/** Runs it, and gives its report. */
async function doctor(
  environment: Readonly<Record<string, string>> = {},
  words: readonly string[] = [],
): Promise<{ report: Report; ended: Ended; of: (code: string) => Finding[] }> {
  return withFolder(async (folder) => {
    const ended = await new Baton(folder, ["doctor", "--json", ...words], { BATON_PYTHON: python, ...environment })
      .ended;
    expect(ended.seconds).toBeLessThan(60);
    expect(processesWith(folder)).toEqual([]);
    const report = JSON.parse(ended.output) as Report;
    expect(ended.code).toBe(report.exitCode);
    return { report, ended, of: (code) => report.findings.filter((finding) => finding.code === code) };
  });
}

const real = await hasNvidiaDriver();

describe("doctor", () => {
  it("says what this machine has, and tries its GPUs", async () => {
    const { report, of } = await doctor();
    expect(report.gpus).toBe(real ? "real" : "stand-in");
    expect(of("VMM_ROUND_TRIP").map(({ verdict }) => verdict)).toEqual(["ok"]);
    expect(of("NVML").map(({ verdict }) => verdict)).toEqual(["ok"]);
    for (const code of ["HOST_MEMORY", "PIDFD", "ADDON_VERSION", "PYTHON_VERSION", "NO_COMPILER"]) {
      expect(
        of(code).map(({ verdict }) => verdict),
        code,
      ).toEqual(["ok"]);
    }
    expect(of("TORCH_VERSION")[0]?.message).toMatch(/^torch \d+\.\d+/);
    expect(report.findings.filter(({ verdict }) => verdict === "problem")).toEqual([]);
  });

  it("says in its report that the model is not there", async () => {
    const { of } = await doctor({}, ["--model", "nowhere"]);
    expect(of("MODEL_NOT_FOUND")[0]).toMatchObject({ subject: "model", verdict: "problem" });
  });

  it("finds settings that break a run on real GPUs", async () => {
    const { of, ended } = await doctor({
      PYTORCH_CUDA_ALLOC_CONF: "expandable_segments:True",
      CUDA_VISIBLE_DEVICES: "GPU-6261746f-6e00-8000-8000-000000000000",
      TORCH_CUDA_ARCH_LIST: "9.0a",
    });
    const verdict = real ? "problem" : "warning";
    expect(of("EXPANDABLE_SEGMENTS")[0]).toMatchObject({ verdict, action: expect.stringContaining("unset") });
    expect(of("BAD_DEVICES")[0]).toMatchObject({ verdict, found: expect.stringContaining("GPU-6261746f") });
    expect(of("ARCH_LIST")[0]).toMatchObject({ verdict: "warning", action: expect.stringContaining("9.0") });
    expect(ended.code).toBe(real ? 1 : 0);
  });

  it("goes on without a Python, and its exit code says that a run would stop", async () => {
    const { of, ended } = await doctor({ BATON_PYTHON: "/bin/false" });
    expect(of("PYTHON_MISSING")[0]).toMatchObject({ verdict: "problem", found: expect.stringContaining("/bin/false") });
    expect(of("VMM_ROUND_TRIP")[0]?.verdict).toBe("ok");
    expect(ended.code).toBe(1);
  });

  it("finds a folder that is too long for sockets", async () => {
    await withFolder(async (folder) => {
      const long = join(folder, "x".repeat(90));
      mkdirSync(long);
      const { of, ended } = await doctor({ XDG_RUNTIME_DIR: long });
      expect(of("SOCKET_PATH_TOO_LONG")[0]?.verdict).toBe("problem");
      expect(ended.code).toBe(1);
    });
  });

  it.skipIf(real)("finds stand-ins whose driver cannot export, or crashes", async () => {
    const refused = await doctor({ BATON_STANDIN_FAULTS: "cuMemExportToShareableHandle:result=801" });
    expect(refused.of("VMM_ROUND_TRIP")[0]).toMatchObject({
      verdict: "problem",
      message: expect.stringContaining('failed at "export"'),
    });
    const crashed = await doctor({ BATON_STANDIN_FAULTS: "cuMemMap:signal=11" });
    expect(crashed.of("VMM_ROUND_TRIP").at(-1)).toMatchObject({
      verdict: "problem",
      found: expect.stringContaining("SIGSEGV"),
    });
    expect(crashed.ended.code).toBe(1);
  });

  it.skipIf(real)("does not take its own trials for other processes on a GPU", async () => {
    const slow = "cuMemMap:delay_ms=400,nvmlDeviceGetMemoryInfo:delay_ms=200";
    const { of } = await doctor({ BATON_STANDIN_FAULTS: slow });
    expect(of("GPU_MEMORY").map(({ found }) => found)).toEqual([
      expect.stringContaining("0 B of"),
      expect.stringContaining("0 B of"),
    ]);
    expect(of("GPU_IN_USE")).toEqual([]);
  });

  it("says whether a model fits", async () => {
    const { of } = await doctor({}, ["--model", join(fixtures, "../../python/src/baton/examples/tiny_model")]);
    expect(of("MODEL_SIZE")[0]?.message).toContain("from safetensors");
    expect(of("HOST_TOO_SMALL")[0]?.verdict).toBe("ok");
    await withFolder(async (folder) => {
      const large = {
        ...{ model_type: "llama", hidden_size: 16_384, num_hidden_layers: 126, num_attention_heads: 128 },
        ...{ num_key_value_heads: 8, intermediate_size: 53_248, vocab_size: 128_256 },
      };
      writeFileSync(join(folder, "config.json"), JSON.stringify(large));
      const { of: ofLarge, ended } = await doctor({}, ["--model", folder, "--ranks", "8", "--zero", "3"]);
      expect(ofLarge("HOST_TOO_SMALL")[0]?.verdict).toBe("problem");
      expect(ended.code).toBe(1);
    });
  });

  it("prints for people what it says in JSON", async () => {
    await withFolder(async (folder) => {
      const ended = await new Baton(folder, ["doctor"], { BATON_PYTHON: "/bin/false" }).ended;
      expect(ended.output).toContain("PROBLEM  No Python was found. [PYTHON_MISSING]");
      expect(ended.output).toMatch(/action: {3}Install Python/);
      expect(ended.output).toMatch(/A run would stop here: 1 problem/);
      expect(ended.output).not.toContain("\u001b[");
    });
  });
});

describe("a run on real GPUs is refused with doctor's words", () => {
  const model = ["--model", join(fixtures, "light_model"), "--set", "engine.maxModelLength=32"];
  const words = ["run", ...model, "--gpus", "1", "--ranks", "1"];
  const attempt = (
    folder: string,
    more: readonly string[],
    environment: Readonly<Record<string, string>>,
  ): Promise<Ended> =>
    new Baton(folder, [...words, "--out", join(folder, "out"), ...more, "--", python, "-c", "pass"], {
      BATON_PYTHON: python,
      ...environment,
    }).ended;

  it.each([
    ["EXPANDABLE_SEGMENTS", { PYTORCH_ALLOC_CONF: "expandable_segments:True" }],
    ["BAD_DEVICES", { CUDA_VISIBLE_DEVICES: "GPU-6261746f-6e00-8000-8000-000000000000" }],
    ["NO_VISIBLE_DEVICES", { CUDA_VISIBLE_DEVICES: "" }],
    ["DEVICES_RENUMBERED", { CUDA_VISIBLE_DEVICES: "1" }],
  ])("%s", async (code, environment) => {
    await withFolder(async (folder) => {
      const ended = await attempt(folder, [], environment);
      const { of } = await doctor(environment);
      const [finding] = of(code);
      expect(finding?.message).toBeDefined();
      expect(ended.output).toContain(`${code}: `);
      for (const part of [finding?.found, finding?.expected, finding?.action]) expect(ended.output).toContain(part);
      expect(ended.code).toBe(1);
    });
  });

  it("and not on stand-ins, where they do nothing", async () => {
    await withFolder(async (folder) => {
      const standins = ["--simulated", "64MiB", "--set", "deadlines.startMs=1"];
      const ended = await attempt(folder, standins, { PYTORCH_ALLOC_CONF: "expandable_segments:True" });
      expect(ended.output).not.toContain("EXPANDABLE_SEGMENTS");
      expect(ended.output).toContain("stand-in GPUs (simulated)");
    });
  });
});

/** A driver that does not answer must not keep doctor: the only test that waits for the real deadline. */
it("doctor ends within a minute beside a driver that hangs", async () => {
  await withFolder(async (folder) => {
    const { report, of } = await doctor({
      BATON_CUDA_LIBRARY: join(standinFolder(), "libcuda.so.1"),
      BATON_STANDIN_TABLE: join(folder, "table"),
      BATON_STANDIN_DEVICES: "1",
      BATON_STANDIN_BYTES: String(64 * 2 ** 20),
      BATON_STANDIN_FAULTS: "cuInit:delay_ms=60000",
    });
    expect(report.gpus).toBe("real");
    expect(of("DRIVER")[0]).toMatchObject({
      verdict: "problem",
      message: "The CUDA driver hangs.",
      found: expect.stringContaining("cuInit"),
    });
    expect(report.exitCode).toBe(1);
  });
});
