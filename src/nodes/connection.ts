/** One TCP connection of the link, whichever end: messages, signs of life, and its end, which is told once. */
import type { Socket } from "node:net";
import type { z } from "zod";
import { encodeFrame, FrameReader } from "./frames.js";

const BEAT_MS = 1_000;

export interface LinkHandlers<T> {
  message(message: T): void;
  /** It is over; `found` says how. Nothing comes afterwards. */
  gone(found: string): void;
}

export class LinkConnection<In extends { readonly type: string }, Out extends { readonly type: string }> {
  readonly #socket: Socket;
  readonly #reader: FrameReader<In>;
  readonly #silenceMs: number;
  readonly #beat: NodeJS.Timeout;
  #lastMs = performance.now();
  #over = false;
  handlers: LinkHandlers<In>;

  /** `silenceMs`: without a word of the other side for so long, it counts as gone. */
  constructor(socket: Socket, schema: z.ZodType<In>, silenceMs: number, handlers: LinkHandlers<In>) {
    this.#socket = socket;
    this.#reader = new FrameReader(schema);
    this.#silenceMs = silenceMs;
    this.handlers = handlers;
    socket.setNoDelay(true);
    socket.on("data", (bytes: Buffer) => this.#read(bytes));
    socket.on("error", (error) => this.#end(error.message));
    socket.on("close", () => this.#end("its connection was closed"));
    this.#beat = setInterval(() => this.#beatOnce(), Math.min(BEAT_MS, silenceMs / 4));
  }

  /** The other side has shown who it is: it may send larger messages. */
  trust(): void {
    this.#reader.trust();
  }

  send(message: Out): void {
    if (!this.#over) this.#socket.write(encodeFrame(message));
  }

  /** Closes it after what was sent; `gone` is not called any more. */
  close(): void {
    if (this.#over) return;
    this.#stop();
    this.#socket.end();
    // A peer that does not read must not keep this process.
    setTimeout(() => this.#socket.destroy(), BEAT_MS).unref();
  }

  #read(bytes: Buffer): void {
    this.#lastMs = performance.now();
    try {
      for (let next = this.#reader.next(bytes); next !== null && !this.#over; next = this.#reader.next()) {
        if (next.type !== "beat") this.handlers.message(next);
      }
    } catch (error) {
      this.#end((error as Error).message);
      this.#socket.destroy();
    }
  }

  #beatOnce(): void {
    // A process that was stopped finds its own silence first: what came meanwhile is read before it judges.
    setImmediate(() => {
      const silentMs = performance.now() - this.#lastMs;
      if (silentMs < this.#silenceMs) return;
      this.#end(`nothing was heard of it for ${Math.round(silentMs)} ms (nodes.silenceMs)`);
      this.#socket.destroy();
    });
    this.send({ type: "beat" } as unknown as Out);
  }

  #end(found: string): void {
    if (this.#over) return;
    this.#stop();
    this.handlers.gone(found);
  }

  #stop(): void {
    this.#over = true;
    clearInterval(this.#beat);
  }
}
