/** Configuration files of `accelerate launch` are looked at where accelerate itself would drop what they ask for. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { checkAccelerateFile } from "../../src/cli/accelerate-file.js";

const folder = mkdtempSync(join(tmpdir(), "baton-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, ...keys: string[]): string {
  writeFileSync(
    join(folder, name),
    ["distributed_type: DEEPSPEED", "deepspeed_config:", "  zero_stage: 3", ...keys.map((key) => `  ${key}`)].join(
      "\n",
    ),
  );
  return name;
}

const plain = file("plain.yaml", "zero_hpz_partition_size:", "zero_quantized_weights: false");
const neutral = file("neutral.yaml", "zero_hpz_partition_size: 1");
const hierarchical = file("hpz.yaml", "zero_hpz_partition_size: 8", "zero_quantized_gradients: true");

describe("a file for accelerate launch", () => {
  it("is the one of `accelerate config` where none is named", () => {
    const home = mkdtempSync(join(folder, "home-"));
    mkdirSync(join(home, "accelerate"));
    copyFileSync(join(folder, hierarchical), join(home, "accelerate/default_config.yaml"));
    vi.stubEnv("HF_HOME", home);
    try {
      const check = (...words: string[]) => checkAccelerateFile(["accelerate", "launch", ...words, "train.py"], folder);
      expect(() => check()).toThrow("default_config.yaml asks for ZeRO++");
      expect(() => check("--config_file", plain)).not.toThrow();
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it.each([
    [["accelerate", "launch", "--config_file", hierarchical, "train.py"]],
    [["/opt/bin/accelerate", "launch", `--config_file=${hierarchical}`, "train.py"]],
    [["python", "-m", "accelerate.commands.launch", "--config-file", hierarchical, "train.py"]],
    [["bash", "-c", `exec accelerate launch --config_file ${hierarchical} train.py`]],
  ])("that asks for ZeRO++ is refused with its keys: %j", (command) => {
    expect(() => checkAccelerateFile(command, folder)).toThrow(
      expect.objectContaining({
        code: "UNSUPPORTED_DEEPSPEED",
        found: "deepspeed_config.zero_hpz_partition_size: 8, deepspeed_config.zero_quantized_gradients: true",
        action: "Remove zero_hpz_partition_size, zero_quantized_gradients from hpz.yaml.",
      }),
    );
  });

  it.each([
    [["accelerate", "launch", "--config_file", plain, "train.py"]],
    [["accelerate", "launch", "--config_file", neutral, "train.py"]],
    [["accelerate", "launch", "--config_file", "missing.yaml", "train.py"]],
    [["accelerate", "launch", "train.py", "--config_file", hierarchical]],
    [["torchrun", "--config_file", hierarchical, "train.py"]],
    [["accelerate", "launch", "--config_file"]],
  ])("is otherwise left to accelerate: %j", (command) => {
    expect(() => checkAccelerateFile(command, folder)).not.toThrow();
  });
});
