/**
 * Frames that were written down once, in both languages: the wire stays as it is until the version changes.
 * `BATON_UPDATE_VECTORS=1` writes test/fixtures/protocol/typescript.json anew; python.json is Python's.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeFromClient, decodeFromController, encodeMessage } from "../../../src/protocol/frames.js";
import type { FromClient, FromController } from "../../../src/protocol/messages.js";
import { clientMessages, controllerMessages } from "./messages-arbitrary.js";
import { fromPlain, plain } from "./plain.js";

interface Vector {
  readonly from: "client" | "controller";
  /** Binary as `{"binary": hexadecimal}`. */
  readonly message: { readonly type: string };
  /** The payload, hexadecimal. */
  readonly payload: string;
}

const fixture = (name: string): string => join(import.meta.dirname, "../../fixtures/protocol", name);
const read = (name: string): Vector[] => JSON.parse(readFileSync(fixture(name), "utf8")) as Vector[];

if (process.env.BATON_UPDATE_VECTORS === "1") {
  const draw = (from: Vector["from"], messages: typeof clientMessages | typeof controllerMessages): Vector[] =>
    messages.flatMap(([, message]) =>
      fc.sample(message as fc.Arbitrary<FromClient | FromController>, { numRuns: 3, seed: 1 }).map((one) => ({
        from,
        message: plain(one) as Vector["message"],
        payload: encodeMessage(one).toString("hex"),
      })),
    );
  const vectors = [...draw("client", clientMessages), ...draw("controller", controllerMessages)];
  writeFileSync(fixture("typescript.json"), `[\n${vectors.map((one) => JSON.stringify(one)).join(",\n")}\n]\n`);
}

describe.each(["typescript.json", "python.json"])("the vectors of %s", (name) => {
  const vectors = read(name);

  it("have every message", () => {
    const types = new Set(vectors.map(({ from, message }) => `${from} ${message.type}`));
    const all = [
      ...clientMessages.map(([type]) => `client ${type}`),
      ...controllerMessages.map(([type]) => `controller ${type}`),
    ];
    expect([...types].sort()).toEqual(all.sort());
  });

  it("are decoded to what they say", () => {
    for (const { from, message, payload } of vectors) {
      const bytes = Buffer.from(payload, "hex");
      expect(plain(from === "client" ? decodeFromClient(bytes) : decodeFromController(bytes))).toEqual(message);
    }
  });
});

it("the vectors of TypeScript are what it writes today", () => {
  for (const { message, payload } of read("typescript.json")) {
    expect(encodeMessage(fromPlain(message) as FromClient).toString("hex")).toBe(payload);
  }
});
