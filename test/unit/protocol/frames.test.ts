import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { BatonError } from "../../../src/errors.js";
import { binaryOf, u32s, u64s, words } from "../../../src/protocol/arrays.js";
import {
  decodeFromClient,
  decodeFromController,
  decodeHeader,
  encodeHeader,
  encodeMessage,
  encodePieces,
  HEADER_BYTES,
  MAX_PAYLOAD_BYTES,
} from "../../../src/protocol/frames.js";
import type { FromClient } from "../../../src/protocol/messages.js";
import { clientMessages, controllerMessages } from "./messages-arbitrary.js";
import { plain } from "./plain.js";

vi.setConfig({ testTimeout: 120_000 });

/** The error that `run` throws. */
function errorOf(run: () => unknown): BatonError {
  try {
    run();
  } catch (error) {
    if (error instanceof BatonError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

describe("payloads", () => {
  it.each(clientMessages)("%s of a client comes out as it went in", (_, message) => {
    fc.assert(
      fc.property(message, (one) => {
        expect(plain(decodeFromClient(encodeMessage(one)))).toEqual(plain(one));
      }),
    );
  });

  it.each(controllerMessages)("%s of the controller comes out as it went in", (_, message) => {
    fc.assert(
      fc.property(message, (one) => {
        expect(plain(decodeFromController(encodeMessage(one)))).toEqual(plain(one));
      }),
    );
  });

  it("writes whole numbers above 32 bits as integers, at any depth", () => {
    // 0xd3: i64. msgpackr alone would write 0xcb, a double, which Python refuses for an integer.
    const bytes = encodeMessage({
      type: "manifest",
      zeroStage: 3,
      dtype: "float32",
      segmentBytes: 2 ** 40,
      names: ["a"],
      dtypes: ["float32"],
      shapes: [[2 ** 33, 1]],
      pieceTensor: new Uint8Array(),
      pieceStart: new Uint8Array(),
      pieceElements: new Uint8Array(),
      pieceOffset: new Uint8Array(),
      stateBytes: 1,
      arenaBytes: 1,
    });
    expect(bytes.includes(0xcb)).toBe(false);
    expect(bytes.filter((byte) => byte === 0xd3).length).toBe(2);
  });

  it("keeps an encoded message as it is while others are encoded", () => {
    const first = encodeMessage({ type: "ping", seq: 7 });
    const copy = Buffer.from(first);
    for (let i = 1; i < 10_000; i++) encodeMessage({ type: "ping", seq: i });
    expect(first.equals(copy)).toBe(true);
  });

  it("says which field of which message is wrong, what was expected and what was there", () => {
    const good = { type: "arrive", epoch: 3 } as const;
    const cases: [object, RegExp, RegExp, RegExp][] = [
      [{ ...good, epoch: -1 }, /"arrive".*epoch/, />=0/, /-1/],
      [{ ...good, epoch: 1.5 }, /"arrive".*epoch/, /int/, /1\.5/],
      [{ type: "arrive" }, /"arrive".*epoch/, /number/, /nothing/],
      [{ type: "arive" }, /"arive"/, /./, /arive/],
      [{ epoch: 1 }, /without type/, /./, /nothing/],
      [
        { type: "exported", seq: 1, segments: "text", checksums: Buffer.alloc(0), last: true },
        /segments/,
        /binary/,
        /"text"/,
      ],
      [{ type: "metrics", step: 1, values: { loss: "high" } }, /values\.loss/, /./, /"high"/],
    ];
    for (const [message, text, expected, found] of cases) {
      const error = errorOf(() => decodeFromClient(encodeMessage(message as never)));
      expect(error.code).toBe("PROTOCOL_ERROR");
      expect(error.message).toMatch(text);
      expect(error.expected).toMatch(expected);
      expect(error.found).toMatch(found);
    }
  });

  it("refuses a message of the other direction", () => {
    expect(errorOf(() => decodeFromClient(encodeMessage({ type: "ping", seq: 1 }))).code).toBe("PROTOCOL_ERROR");
    expect(errorOf(() => decodeFromController(encodeMessage({ type: "pong", seq: 1 }))).code).toBe("PROTOCOL_ERROR");
  });

  it("refuses integers that a double cannot hold", () => {
    // {type: "ping", seq: 2^53 + 1}
    const bytes = Buffer.concat([
      Buffer.from([0x82, 0xa4]),
      Buffer.from("type"),
      Buffer.from([0xa4]),
      Buffer.from("ping"),
      Buffer.from([0xa3]),
      Buffer.from("seq"),
      Buffer.from([0xcf, 0, 0x20, 0, 0, 0, 0, 0, 1]),
    ]);
    expect(errorOf(() => decodeFromController(bytes)).message).toMatch(/seq/);
  });

  it("answers any bytes with a message or PROTOCOL_ERROR", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
        try {
          decodeFromClient(bytes);
        } catch (error) {
          expect((error as BatonError).code).toBe("PROTOCOL_ERROR");
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it("answers any damage to a message with a message or PROTOCOL_ERROR", () => {
    const sampling = { n: 1, temperature: 1, topK: 0, topP: 1, minP: 0, maxTokens: 4, stopTokenIds: [2], seed: null };
    const good = encodeMessage({
      type: "prompts",
      call: 0,
      tokens: binaryOf(Uint32Array.of(1, 2, 3)),
      lengths: binaryOf(Uint32Array.of(3)),
      sampling,
    });
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), (at, byte) => {
        const damaged = Buffer.from(good);
        damaged[at] = byte;
        try {
          decodeFromClient(damaged);
        } catch (error) {
          expect((error as BatonError).code).toBe("PROTOCOL_ERROR");
        }
      }),
      { numRuns: 2_000 },
    );
  });
});

describe("headers", () => {
  it("come out as they went in", () => {
    fc.assert(
      fc.property(fc.nat(MAX_PAYLOAD_BYTES), fc.nat(253), (payloadBytes, descriptors) => {
        const bytes = encodeHeader({ payloadBytes, descriptors });
        expect(bytes.length).toBe(HEADER_BYTES);
        expect(decodeHeader(bytes)).toEqual({ payloadBytes, descriptors });
      }),
    );
  });

  it("are little-endian: length, version, descriptors, zero", () => {
    expect([...encodeHeader({ payloadBytes: 0x01020304, descriptors: 5 })]).toEqual([4, 3, 2, 1, 1, 5, 0, 0]);
  });

  it.each([
    ["another version", [1, 0, 0, 0, 2, 0, 0, 0]],
    ["too many descriptors", [1, 0, 0, 0, 1, 254, 0, 0]],
    ["a payload that is too long", [1, 0, 0, 0x40, 1, 0, 0, 0]],
    ["bytes that must be zero", [1, 0, 0, 0, 1, 0, 1, 0]],
    ["the end", [1, 0, 0]],
  ])("with %s are refused", (_, bytes) => {
    expect(errorOf(() => decodeHeader(Uint8Array.from(bytes))).code).toBe("PROTOCOL_ERROR");
  });
});

describe("a message in pieces", () => {
  const message = (tokens: number): FromClient => ({
    type: "generated",
    request: 2 ** 33,
    epoch: 1,
    tokens: randomBytes(tokens * 4),
    lengths: randomBytes(8),
    logprobs: randomBytes(tokens * 4),
    finish: randomBytes(tokens),
    seconds: 0.5,
  });

  it.each([10, 20_000])("is the same message, %i tokens", (tokens) => {
    const original = message(tokens);
    const pieces = encodePieces(original);
    expect(decodeFromClient(pieces instanceof Uint8Array ? pieces : Buffer.concat(pieces))).toEqual(
      decodeFromClient(encodeMessage(original)),
    );
  });

  it("holds large binary as it is", () => {
    const original = message(20_000) as Extract<FromClient, { type: "generated" }>;
    const pieces = encodePieces(original) as Uint8Array[];
    expect(pieces).toContain(original.tokens);
    expect(pieces).toContain(original.logprobs);
    expect(pieces).not.toContain(original.finish);
  });
});

describe("arrays", () => {
  it("come out as they went in, wherever in a frame they start", () => {
    fc.assert(
      fc.property(fc.uint32Array(), fc.bigUint64Array(), fc.nat(7), (u32, u64, shift) => {
        const shifted = (array: ArrayBufferView): Uint8Array => {
          const bytes = Buffer.concat([Buffer.alloc(shift), binaryOf(array)]);
          return bytes.subarray(shift);
        };
        expect(u32s(shifted(u32), "a")).toEqual(u32);
        expect(u64s(shifted(u64), "a")).toEqual(u64);
      }),
    );
  });

  it("of a broken length are named", () => {
    expect(errorOf(() => u64s(new Uint8Array(9), "checksums")).message).toMatch(/checksums/);
    expect(errorOf(() => words(new Uint8Array(9), "tokens")).message).toMatch(/tokens/);
  });
});
