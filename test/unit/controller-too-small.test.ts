import { expect, it } from "vitest";
import { asTooSmall } from "../../src/controller/too-small.js";
import type { Failure } from "../../src/protocol/messages.js";

const failure: Failure = {
  code: "CUDA_OUT_OF_MEMORY",
  message: "rank 0: GPU 0 has no room for a table of 655360 bytes.",
  expected: "655360 bytes free on GPU 0",
  found: "0 of 8388608 bytes free",
  action: "Free memory.",
};

it("memory that stand-in GPUs have not means that they are too small", () => {
  for (const code of ["CUDA_OUT_OF_MEMORY", "OUT_OF_MEMORY"]) {
    expect(asTooSmall({ ...failure, code })).toMatchObject({
      code: "GPU_TOO_SMALL",
      message: `the stand-in GPUs are too small: ${failure.message}`,
      expected: "more than 8.0 MiB each, with 655360 bytes free on GPU 0",
      found: failure.found,
      action: expect.stringContaining("--gpu-memory"),
    });
  }
});

it("a block that is larger than all addresses for a stand-in GPU is too large for it", () => {
  const block = { code: "OUT_OF_ADDRESS_SPACE", expected: "18874368 bytes in one piece" };
  const found = "16777216 bytes reserved in all";
  expect(asTooSmall({ ...failure, ...block, found })).toMatchObject({ code: "GPU_TOO_SMALL", found });
});

it("a driver that had the room and would not give it has not run out", () => {
  const others = [{ found: "700000 of 8388608 bytes free" }, { code: "DEADLINE" }, { expected: "more" }, { found: "" }];
  for (const other of others) expect(asTooSmall({ ...failure, ...other })).toEqual({ ...failure, ...other });
});
