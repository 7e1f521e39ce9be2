/**
 * Every message between the controller and its clients (ranks, engines, workers), once, for both languages:
 * `npm run protocol` turns these schemas into `python/src/baton/protocol/messages.py`.
 *
 * A frame is an 8-byte header (u32 payload length, u8 version, u8 descriptor count, u16 zero; little-endian)
 * and a MessagePack map with a `type`. Integer arrays travel as little-endian binary: `u32s` and `u64s`.
 * Times are in seconds (`…Seconds`, floating point), sizes in bytes (`…Bytes`).
 */
import { z } from "zod";
import * as client from "./messages/client.js";
import * as controller from "./messages/controller.js";
import type { failure, sampling, wakeTag } from "./messages/fields.js";

export * from "./messages/client.js";
export * from "./messages/controller.js";
export { failure, releaseStage, sampling, wakeTag } from "./messages/fields.js";

export const PROTOCOL_VERSION = 1;

export const fromClient = z.discriminatedUnion("type", [
  client.hello,
  client.manifest,
  client.arrive,
  client.released,
  client.exported,
  client.prompts,
  client.leave,
  client.resumed,
  client.returned,
  client.logprobCheck,
  client.metrics,
  client.ready,
  client.awake,
  client.asleep,
  client.progress,
  client.generated,
  client.planned,
  client.synced,
  client.summed,
  client.failed,
  client.goodbye,
  client.pong,
]);
export const fromController = z.discriminatedUnion("type", [
  controller.welcome,
  controller.arena,
  controller.release,
  controller.exportSegments,
  controller.opened,
  controller.completions,
  controller.resume,
  controller.wake,
  controller.sleep,
  controller.plan,
  controller.sync,
  controller.rankManifest,
  controller.sources,
  controller.generate,
  controller.ping,
  controller.shutdown,
]);

export type FromClient = z.infer<typeof fromClient>;
export type FromController = z.infer<typeof fromController>;
export type Sampling = z.infer<typeof sampling>;
export type Failure = z.infer<typeof failure>;
export type Manifest = z.infer<typeof client.manifest>;
export type WakeTag = z.infer<typeof wakeTag>;
