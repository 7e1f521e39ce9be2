/** Both languages over a real socket: what TypeScript sends, Python understands, and the other way round. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  decodeFromClient,
  decodeFromController,
  decodeHeader,
  encodeHeader,
  encodeMessage,
  HEADER_BYTES,
} from "../../../src/protocol/frames.js";
import { type FromClient, type FromController, PROTOCOL_VERSION } from "../../../src/protocol/messages.js";
import { MESSAGE_SOURCES, pythonMessages } from "../../../src/protocol/python.js";
import { clientMessages, controllerMessages } from "./messages-arbitrary.js";
import { plain } from "./plain.js";

const root = join(import.meta.dirname, "../../..");
const python = process.env.BATON_PYTHON ?? join(root, ".venv/bin/python");
const environment = { ...process.env, PYTHONPATH: join(root, "python/src") };

/** Sends frames through an echo in Python and gives the payloads that come back. */
async function throughPython(union: string, payloads: readonly Buffer[]): Promise<Buffer[]> {
  const folder = mkdtempSync(join(tmpdir(), "baton-echo-"));
  const path = join(folder, "socket");
  const server = createServer().listen(path);
  let child: ChildProcess | undefined;
  try {
    const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
    child = spawn(python, [join(root, "test/fixtures/protocol/echo.py"), path, union], {
      env: environment,
      stdio: ["ignore", "inherit", "inherit"],
    });
    const failed = new Promise<never>((_, reject) => {
      child?.once("error", reject);
      child?.once("exit", (code) => reject(new Error(`the echo exited with ${code}`)));
    });
    const socket = await Promise.race([connected, failed]);
    for (const payload of payloads) {
      socket.write(encodeHeader({ payloadBytes: payload.length, descriptors: 0 }));
      socket.write(payload);
    }
    const answers = await Promise.race([readFrames(socket, payloads.length), failed]);
    socket.end();
    return answers;
  } finally {
    child?.removeAllListeners("exit");
    child?.kill("SIGKILL");
    server.close();
    rmSync(folder, { recursive: true });
  }
}

async function readFrames(socket: Socket, count: number): Promise<Buffer[]> {
  const frames: Buffer[] = [];
  let rest = Buffer.alloc(0);
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    rest = Buffer.concat([rest, chunk]);
    while (rest.length >= HEADER_BYTES) {
      const { payloadBytes } = decodeHeader(rest);
      if (rest.length < HEADER_BYTES + payloadBytes) break;
      frames.push(rest.subarray(HEADER_BYTES, HEADER_BYTES + payloadBytes));
      rest = rest.subarray(HEADER_BYTES + payloadBytes);
    }
    if (frames.length === count) return frames;
  }
  throw new Error(`the connection ended after ${frames.length} of ${count} frames`);
}

describe("TypeScript and Python", () => {
  it("agree on every message of a client", { timeout: 60_000 }, async () => {
    const sent = clientMessages.flatMap(([, message]) => fc.sample(message, 40)) as FromClient[];
    const back = await throughPython("FromClient", sent.map(encodeMessage));
    expect(back.map((payload) => plain(decodeFromClient(payload)))).toEqual(sent.map(plain));
  });

  it("agree on every message of the controller", { timeout: 60_000 }, async () => {
    const sent = controllerMessages.flatMap(([, message]) => fc.sample(message, 40)) as FromController[];
    const back = await throughPython("FromController", sent.map(encodeMessage));
    expect(back.map((payload) => plain(decodeFromController(payload)))).toEqual(sent.map(plain));
  });

  it("have the same messages: messages.py is generated from src/protocol/messages as it is now", () => {
    const source = MESSAGE_SOURCES.map((name) => readFileSync(join(root, "src/protocol", name), "utf8")).join("");
    const generated = readFileSync(join(root, "python/src/baton/protocol/messages.py"), "utf8");
    expect(generated === pythonMessages(source, PROTOCOL_VERSION), "stale: run `npm run protocol`").toBe(true);
  });
});
