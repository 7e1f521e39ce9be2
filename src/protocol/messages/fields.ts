/** What the fields of several messages are. */
import { z } from "zod";

export const index = z.int().min(0);
export const count = z.int().min(0);
export const bytes = z.int().min(0);
export const seconds = z.number().min(0);
/** A byte count that may not be known. */
export const bytesOrUnknown = z.union([bytes, z.null()]);
export const binary = z.custom<Uint8Array>((value) => value instanceof Uint8Array, { error: "expected binary" });
/** Numbers every command of the controller; a reply carries the number of its command. */
export const seq = z.int().min(1);

export const wakeTag = z.enum(["weights", "kv_cache"]);
export const releaseStage = z.enum(["optimizer", "all"]);

export const sampling = z.object({
  n: z.int().min(1),
  temperature: z.number().min(0),
  /** Only the so many likeliest tokens; 0: all of them. */
  topK: z
    .int()
    .min(0)
    .max(2 ** 31 - 1),
  /** Only the fewest tokens that together have this probability. */
  topP: z.number().gt(0).max(1),
  /** Only tokens at least this share as likely as the likeliest one. */
  minP: z.number().min(0).max(1),
  maxTokens: z.int().min(1),
  stopTokenIds: z.array(z.int().min(0)),
  /** null: drawn by the controller. Sample k of prompt p uses a stream of its own derived from it. */
  seed: z.union([z.int().min(0), z.null()]),
});

/** What went wrong, in the words that the user will read. */
export const failure = z.object({
  code: z.string(),
  message: z.string(),
  expected: z.string(),
  found: z.string(),
  action: z.string(),
});
