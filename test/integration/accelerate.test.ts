/** `accelerate launch` with the configuration files that people have, and an `Accelerator` in the script. */
import { describe, expect, it } from "vitest";
import { FILES, launched, ZERO_3 } from "./accelerate.js";
import { withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { errorCodes } from "./remains.js";

async function refused(code: string, config: string, ...words: string[]): Promise<string> {
  return withFolder(async (folder) => {
    const baton = launched(folder, config, words);
    const { output, code: exit } = await baton.ended;
    expect(errorCodes(output), output).toEqual([code]);
    expect(exit).toBe(1);
    return output;
  });
}

describe("accelerate launch", { timeout: 300_000 }, () => {
  const files = Object.entries(FILES).filter(([name]) => ALL || name === "ZeRO-3");
  it.each(files)("with the file for %s trains, and every check passes", async (name, config) => {
    await withFolder(async (folder) => {
      const baton = launched(folder, config, ["--steps", "2"]);
      const { code, output } = await baton.ended;
      expect(code, output).toBe(0);
      const { checks, topology, handoffs } = baton.summary();
      expect(topology.zeroStage).toBe(Number(name.at(-1)));
      expect(handoffs.toTraining).toBe(2);
      expect(checks.weightChecksumsFailed).toBe(0);
      expect(checks.weightChecksumsPassed).toBeGreaterThan(0);
    });
  });

  it.runIf(ALL).each(["ZeRO-2", "ZeRO-3"] as const)("trains in float16 with a scaled loss too, by %s", async (name) => {
    await withFolder(async (folder) => {
      const baton = launched(folder, FILES[name], ["--steps", "8", "--any-type"], undefined, { dtype: "float16" });
      const { code, output } = await baton.ended;
      expect(code, output).toBe(0);
      const { checks, handoffs } = baton.summary();
      expect(handoffs.toTraining).toBe(8);
      expect(checks).toMatchObject({ weightChecksumsFailed: 0 });
      expect(checks.maxLogprobDifference).toBeLessThan(0.1);
    });
  });

  it("is refused with an optimizer on the host, by its name and before the model is built", async () => {
    const output = await refused(
      "UNSUPPORTED_DEEPSPEED",
      ZERO_3.replace("offload_optimizer_device: none", "offload_optimizer_device: cpu"),
    );
    expect(output).toContain("offload_optimizer.device: cpu");
  });

  it.runIf(ALL)("is refused when each process believes that it is alone", async () => {
    const output = await refused("WORLD_MISMATCH", FILES["ZeRO-2"], "--unnamed-backend");
    expect(output).toContain("InitProcessGroupKwargs(backend='gloo')");
  });
});
