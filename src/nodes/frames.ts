/** Frames of the link: a u32 length (little-endian) and a MessagePack map. */
import { Packr, Unpackr } from "msgpackr";
import type { z } from "zod";
import { BatonError } from "../errors.js";

const HEADER_BYTES = 4;
/** Summaries and recipes are far smaller. */
const MAX_PAYLOAD_BYTES = 4 << 20;
/** Of whoever has not yet shown that it is one of us. */
const MAX_STRANGER_BYTES = 4 << 10;

const packr = new Packr({ useRecords: false, encodeUndefinedAsNil: true });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "number" });

export function encodeFrame(message: object): Buffer {
  const payload = packr.pack(message);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(payload.byteLength, 0);
  return Buffer.concat([header, payload]);
}

/** Cuts a stream of bytes into messages. */
export class FrameReader<T> {
  readonly #schema: z.ZodType<T>;
  #pending: Buffer = Buffer.alloc(0);
  /** Longest payload that is taken. */
  #limit = MAX_STRANGER_BYTES;

  constructor(schema: z.ZodType<T>) {
    this.#schema = schema;
  }

  /** The other side has shown who it is. */
  trust(): void {
    this.#limit = MAX_PAYLOAD_BYTES;
  }

  /**
   * The next whole message after these bytes; call it with no bytes until it gives null.
   *
   * @throws BatonError LINK_PROTOCOL when this is nothing that a controller sends
   */
  next(bytes: Buffer = Buffer.alloc(0)): T | null {
    this.#pending = this.#pending.byteLength === 0 ? bytes : Buffer.concat([this.#pending, bytes]);
    if (this.#pending.byteLength < HEADER_BYTES) return null;
    const length = this.#pending.readUInt32LE(0);
    if (length > this.#limit) throw broken(`at most ${this.#limit} bytes`, `a frame of ${length} bytes`);
    if (this.#pending.byteLength < HEADER_BYTES + length) return null;
    const payload = this.#pending.subarray(HEADER_BYTES, HEADER_BYTES + length);
    this.#pending = this.#pending.subarray(HEADER_BYTES + length);
    let value: unknown;
    try {
      value = unpackr.unpack(payload);
    } catch (error) {
      throw broken("a MessagePack map", (error as Error).message);
    }
    const result = this.#schema.safeParse(value);
    if (result.success) return result.data;
    const [issue] = result.error.issues;
    const type = (value as { type?: unknown } | null)?.type;
    throw broken(`message ${JSON.stringify(type)}: ${issue?.path.join(".")}: ${issue?.message}`, "another value");
  }
}

function broken(expected: string, found: string): BatonError {
  return new BatonError({
    code: "LINK_PROTOCOL",
    message: "What another node's controller sent makes no sense.",
    expected,
    found,
    action: "Use the same version of Baton on every node, and a port that nothing else uses (nodes.port).",
  });
}
