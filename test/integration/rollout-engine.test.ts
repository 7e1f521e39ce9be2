/** DeepSpeed's own rollout interface, with Baton behind it and with DeepSpeed's engine beside it. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Baton, fixtures, withFolder } from "./baton.js";
import { writeModel } from "./deepspeed.js";
import { ALL } from "./extent.js";
import { python } from "./light.js";

const RANKS = 2;

describe("DeepSpeed's RolloutEngine", { timeout: 120_000 }, () => {
  const stages = ALL ? [3, 2] : [3];
  it.each(stages)("gives the same batches greedily as DeepSpeed's own, under ZeRO-%i, a handoff each", async (zero) => {
    await withFolder(async (folder) => {
      const model = writeModel(folder, { tied: true, keyValueHeads: 2, dtype: "float32" });
      const engine = ["engine.dtype=float32", "engine.maxModelLength=32", "engine.maxSequences=16"];
      const baton = new Baton(
        folder,
        [
          ...["run", "--model", model, "--out", join(folder, "out"), "--log", "--engines", "1", "--tp", String(RANKS)],
          ...["--ranks", String(RANKS), "--gpus", String(RANKS), "--simulated", "64MiB"],
          ...engine.flatMap((pair) => ["--set", pair]),
          ...["--", python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", String(RANKS)],
          ...[join(fixtures, "rollout_engine_rank.py"), "--model", model, "--zero", String(zero)],
        ],
        { BATON_PYTHON: python },
      );
      const { code, output } = await baton.ended;
      expect(code, output).toBe(0);
      expect(baton.summary().handoffs).toEqual({ toGeneration: 4, toTraining: 4 });
      expect(baton.summary().checks.weightChecksumsFailed).toBe(0);
    });
  });
});
