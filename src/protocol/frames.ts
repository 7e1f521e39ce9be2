/**
 * The payload of a frame: encoding, and decoding with a check of every field. The header in front of it is the
 * business of whoever owns the socket (the native addon here, `baton.protocol.frames` in Python).
 */
import { Packr, Unpackr } from "msgpackr";
import type { z } from "zod";
import { BatonError } from "../errors.js";
import { type FromClient, type FromController, fromClient, fromController, PROTOCOL_VERSION } from "./messages.js";

export const HEADER_BYTES = 8;
/** SCM_MAX_FD of Linux; one more is EINVAL. */
export const MAX_DESCRIPTORS = 253;
/** Larger than any honest frame; a header that says more is not ours. */
export const MAX_PAYLOAD_BYTES = 1 << 30;

// Of MessagePack.
const MAP16 = 0xde;
const BIN32 = 0xc6;

// useRecords: false, or objects become an extension that only msgpackr knows.
const packr = new Packr({ useRecords: false, encodeUndefinedAsNil: true });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "number" });

export interface Header {
  readonly payloadBytes: number;
  readonly descriptors: number;
}

/** The 8 bytes in front of a payload, for tests and for tools without the addon. */
export function encodeHeader(header: Header): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.writeUInt32LE(header.payloadBytes, 0);
  bytes.writeUInt8(PROTOCOL_VERSION, 4);
  bytes.writeUInt8(header.descriptors, 5);
  return bytes;
}

/** @throws BatonError PROTOCOL_ERROR when these are not the first bytes of one of our frames. */
export function decodeHeader(bytes: Uint8Array): Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.byteLength < HEADER_BYTES) {
    throw protocolError("the header of a frame is cut off", `${HEADER_BYTES} bytes`, `${bytes.byteLength} bytes`);
  }
  const version = view.getUint8(4);
  if (version !== PROTOCOL_VERSION) {
    throw protocolError("a frame has another protocol version", `version ${PROTOCOL_VERSION}`, `version ${version}`);
  }
  const payloadBytes = view.getUint32(0, true);
  const descriptors = view.getUint8(5);
  if (view.getUint16(6, true) !== 0 || payloadBytes > MAX_PAYLOAD_BYTES || descriptors > MAX_DESCRIPTORS) {
    throw protocolError(
      "the header of a frame makes no sense",
      `at most ${MAX_PAYLOAD_BYTES} bytes, at most ${MAX_DESCRIPTORS} descriptors, then two zero bytes`,
      `${payloadBytes} bytes, ${descriptors} descriptors`,
    );
  }
  return { payloadBytes, descriptors };
}

/**
 * Encodes one message. It is not checked: TypeScript has done so.
 *
 * The buffer is the caller's own; nothing of the codec keeps a reference to it.
 */
export function encodeMessage(message: FromController | FromClient): Buffer {
  return packr.pack(withWideIntegers(message));
}

/** A binary field of this size or more is a piece of its own. */
const PIECE_BYTES = 64 << 10;

/**
 * Encodes one message without copying its large binary fields: they are pieces of the payload, which is all of them
 * one after another. They must not change until the payload is sent.
 */
export function encodePieces(message: FromController | FromClient): Uint8Array | readonly Uint8Array[] {
  const large: [string, Uint8Array][] = [];
  const rest: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(message)) {
    if (value instanceof Uint8Array && value.byteLength >= PIECE_BYTES) large.push([key, value]);
    else rest[key] = value;
  }
  if (large.length === 0) return encodeMessage(message);
  const map = packr.pack(withWideIntegers(rest));
  // The codec's header of the map counts the small fields only.
  const headerBytes = map[0] === MAP16 ? 3 : 1;
  const header = Buffer.of(MAP16, 0, Object.keys(rest).length + large.length);
  const pieces: Uint8Array[] = [Buffer.concat([header, map.subarray(headerBytes)])];
  for (const [key, binary] of large) {
    const bin32 = Buffer.alloc(5);
    bin32.writeUInt8(BIN32, 0);
    bin32.writeUInt32BE(binary.byteLength, 1);
    pieces.push(Buffer.concat([packr.pack(key), bin32]), binary);
  }
  return pieces;
}

/** @throws BatonError PROTOCOL_ERROR naming the message and the field that is not as it must be. */
export function decodeFromClient(payload: Uint8Array): FromClient {
  return decode(payload, fromClient, "a client");
}

/** @throws BatonError PROTOCOL_ERROR naming the message and the field that is not as it must be. */
export function decodeFromController(payload: Uint8Array): FromController {
  return decode(payload, fromController, "the controller");
}

function decode<T>(payload: Uint8Array, schema: z.ZodType<T>, sender: string): T {
  let value: unknown;
  try {
    value = unpackr.unpack(payload);
  } catch (error) {
    throw protocolError(
      `a frame of ${sender} is not MessagePack`,
      "one MessagePack map",
      error instanceof Error ? error.message : String(error),
    );
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const type = messageType(value);
  const field = issue?.path.join(".") ?? "";
  throw protocolError(
    `${type} of ${sender}: ${field === "" ? "the message" : `field ${field}`} is not valid`,
    issue?.message ?? "a valid message",
    found(value, issue?.path ?? []),
  );
}

function messageType(value: unknown): string {
  const type = typeof value === "object" && value !== null && "type" in value ? value.type : undefined;
  return typeof type === "string" ? `message ${JSON.stringify(type)}` : "a message without type";
}

/** The value at `path`, short. */
function found(value: unknown, path: readonly PropertyKey[]): string {
  let at = value;
  for (const key of path) at = (at as Record<PropertyKey, unknown> | null | undefined)?.[key];
  if (at === undefined) return "nothing";
  if (at instanceof Uint8Array) return `${at.byteLength} bytes of binary`;
  const text = JSON.stringify(at, (_, inner) => (typeof inner === "bigint" ? `${inner}` : inner)) ?? typeof at;
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function protocolError(message: string, expected: string, foundText: string): BatonError {
  return new BatonError({
    code: "PROTOCOL_ERROR",
    message,
    expected,
    found: foundText,
    action: "Use the same version of Baton in every process of the run.",
  });
}

/**
 * msgpackr writes a whole number above 32 bits as a float, which the other side rightly refuses for an
 * integer; as a BigInt it is written as an integer. Whatever holds no such number is returned as it is.
 */
function withWideIntegers(value: unknown): unknown {
  if (typeof value === "number") {
    return Number.isSafeInteger(value) && (value > 0xffffffff || value < -0x80000000) ? BigInt(value) : value;
  }
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return value;
  if (Array.isArray(value)) {
    let copy: unknown[] | null = null;
    for (let i = 0; i < value.length; i++) {
      const wide = withWideIntegers(value[i]);
      if (wide === value[i]) continue;
      copy ??= value.slice();
      copy[i] = wide;
    }
    return copy ?? value;
  }
  const object = value as Record<string, unknown>;
  let copy: Record<string, unknown> | null = null;
  for (const key in object) {
    const wide = withWideIntegers(object[key]);
    if (wide === object[key]) continue;
    copy ??= { ...object };
    copy[key] = wide;
  }
  return copy ?? value;
}
