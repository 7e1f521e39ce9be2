/** Configuration files of `accelerate launch` are looked at where accelerate itself would drop what they ask for. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
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
const hierarchical = file("hpz.yaml", "zero_hpz_partition_size: 8", "zero_quantized_gradients: true");

describe("a file for accelerate launch", () => {
  it.each([
    [["accelerate", "launch", "--config_file", hierarchical, "train.py"]],
    [["/opt/bin/accelerate", "launch", `--config_file=${hierarchical}`, "train.py"]],
    [["python", "-m", "accelerate.commands.launch", "--config-file", hierarchical, "train.py"]],
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
    [["accelerate", "launch", "--config_file", "missing.yaml", "train.py"]],
    [["accelerate", "launch", "train.py", "--config_file", hierarchical]],
    [["torchrun", "--config_file", hierarchical, "train.py"]],
    [["accelerate", "launch", "--config_file"]],
  ])("is otherwise left to accelerate: %j", (command) => {
    expect(() => checkAccelerateFile(command, folder)).not.toThrow();
  });
});
