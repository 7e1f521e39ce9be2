/** A run that ran out of the memory of its own stand-in GPUs: nobody else holds any, so these are too small. */
import { formatBytes } from "../memory/ledger.js";
import type { Failure } from "../protocol/messages.js";
import { STANDIN_SIZE } from "../recipe/index.js";

/** As the allocators say it, in Python and in C++: what was wanted, and what there was of how much. */
const WORDS: Readonly<Record<string, readonly [wanted: RegExp, found: RegExp]>> = {
  OUT_OF_MEMORY: [/^(\d+) bytes free on GPU \d+$/, /^(\d+) of (\d+) bytes free/],
  CUDA_OUT_OF_MEMORY: [/^(\d+) bytes free on GPU \d+$/, /^(\d+) of (\d+) bytes free/],
  // A pool reserves twice as many addresses as its GPU has bytes.
  OUT_OF_ADDRESS_SPACE: [/^(\d+) bytes in one piece$/, /^(\d+) bytes reserved in all/],
};

/** The failure in those words; as it is when it is about something else, or there was room. */
export function asTooSmall(failure: Failure): Failure {
  const [wanted, found] = WORDS[failure.code] ?? [];
  const need = Number(wanted?.exec(failure.expected)?.[1]);
  const [free, total] = found?.exec(failure.found)?.slice(1).map(Number) ?? [];
  if (free === undefined || !(free < need)) return failure;
  return {
    ...failure,
    code: "GPU_TOO_SMALL",
    message: `the stand-in GPUs are too small: ${failure.message}`,
    expected: total === undefined ? failure.expected : `more than ${formatBytes(total)} each, with ${failure.expected}`,
    action:
      `${STANDIN_SIZE}, or use a smaller model, batch or cache (engine.cacheBytes); under ZeRO-3 DeepSpeed's buffers are ` +
      "as large as reduce_bucket_size says, 5e8 elements if nothing does.",
  };
}
