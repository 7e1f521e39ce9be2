/** What doctor says of machines that nobody here has: each spoiled in one place. */
import { describe, expect, it } from "vitest";
import { exitCodeOf } from "../../../src/doctor/finding.js";
import { judge } from "../../../src/doctor/judge.js";
import { FAILURE, found, machine, type Trouble, troubles, withoutGpu } from "./machine.js";
import { OF_GPUS } from "./troubles-gpus.js";
import { OF_HOST } from "./troubles-host.js";

describe("a machine on which all is well", () => {
  it("has no finding but good ones, with GPUs and without", () => {
    expect(troubles(machine())).toEqual([]);
    expect(troubles(withoutGpu())).toEqual([]);
    expect(exitCodeOf(judge(machine(), null))).toBe(0);
  });

  it("has no code twice for one thing", () => {
    const findings = judge(machine(), null);
    const keys = findings.map(({ code, message }) => `${code} ${message}`);
    expect(new Set(keys).size).toBe(keys.length);
  });
});

/** One thing is wrong, and exactly that is said. */
const cases = [...OF_GPUS, ...OF_HOST];

describe("on real GPUs, doctor finds", () => {
  it.each(cases)("%s", (_, expected, spoil) => {
    expect(troubles(machine(spoil))).toEqual([expected]);
  });

  it("for each trouble what was found, and what to do", () => {
    for (const [, , spoil] of cases) {
      for (const finding of judge(machine(spoil), null)) {
        if (finding.verdict === "ok") continue;
        expect(finding.found, finding.code).not.toBe("");
        if (finding.verdict === "unknown") continue;
        if (finding.code !== "ADDON_NOT_LOADED") expect(finding.action, finding.code).not.toBe("");
      }
    }
  });

  it("a torch that vLLM was not built for", () => {
    const facts = machine(({ python }) => {
      if (python) python.packages.torch = "2.13.0";
    });
    expect(troubles(facts)).toEqual(["TORCH_VERSION:warning", "TORCH_AND_VLLM:problem"]);
  });

  it("that an exit code of 1 means a problem, and a warning alone does not", () => {
    for (const [name, expected, spoil] of cases) {
      expect(exitCodeOf(judge(machine(spoil), null)), name).toBe(expected.endsWith(":problem") ? 1 : 0);
    }
  });
});

describe("without a GPU", () => {
  it("says that stand-ins would be used, and that they were tried", () => {
    const [driver] = found(withoutGpu(), "DRIVER");
    expect(driver).toMatchObject({ verdict: "ok", message: expect.stringContaining("stand-in GPUs (simulated)") });
    expect(found(withoutGpu(), "VMM_ROUND_TRIP", "ok")).toHaveLength(1);
  });

  it("settings of real GPUs are warnings, and small locked memory is none", () => {
    const facts = withoutGpu(({ host }) => {
      host.environment.PYTORCH_CUDA_ALLOC_CONF = "expandable_segments:True";
      host.environment.CUDA_VISIBLE_DEVICES = "GPU-1";
      host.limits.lockedBytes = 65_536;
    });
    expect(troubles(facts)).toEqual(["EXPANDABLE_SEGMENTS:warning", "BAD_DEVICES:warning"]);
  });

  it.each<Trouble>([
    [
      "stand-ins that do not export",
      "VMM_ROUND_TRIP:problem",
      ({ standin }) => {
        Object.assign(standin?.cuda.roundTrips[0] ?? {}, { stage: "export", error: FAILURE });
      },
    ],
    [
      "stand-ins that do not load",
      "STANDIN:problem",
      ({ standin }) => {
        if (standin) Object.assign(standin.cuda, { driver: null, error: FAILURE });
      },
    ],
    [
      "another driver in the stand-in's place",
      "STANDIN:problem",
      ({ standin }) => {
        if (standin?.cuda.driver) standin.cuda.driver.simulated = false;
      },
    ],
    [
      "no compiler for the allocator",
      "NO_COMPILER:problem",
      ({ tools }) => {
        if (tools.compiler) tools.compiler.cxx20 = false;
      },
    ],
    [
      "device files of a driver that does not work",
      "DRIVER:problem",
      ({ host }) => {
        host.deviceFile = true;
      },
    ],
    [
      "a probe that is not installed",
      "DRIVER:unknown",
      ({ cuda, nvml }) => {
        const end = { how: "missing", at: null, detail: "no such file" } as const;
        Object.assign(cuda, { end, error: null });
        Object.assign(nvml, { end, error: null });
      },
    ],
  ])("finds %s", (_, expected, spoil) => {
    expect(troubles(withoutGpu(spoil))).toEqual([expected]);
  });

  it("does not miss vLLM, which needs a GPU", () => {
    const facts = withoutGpu(({ python }) => {
      delete python?.packages.vllm;
    });
    expect(troubles(facts)).toEqual([]);
  });
});
