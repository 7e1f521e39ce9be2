/**
 * The arenas: host memory that the ranks' paused pools live in. The controller makes and keeps them, so that one
 * outlives its rank.
 */
import { closeDescriptor, memfd } from "../native.js";

interface Arena {
  readonly descriptor: number;
  readonly bytes: number;
}

export class Arenas {
  readonly #arenas = new Map<number, Arena>();

  /** The arena of a local rank, of at least so many bytes. One that is large enough is kept. */
  of(rank: number, bytes: number): Arena {
    const known = this.#arenas.get(rank);
    if (known !== undefined && known.bytes >= bytes) return known;
    if (known !== undefined) closeDescriptor(known.descriptor);
    const arena = { descriptor: memfd(`baton arena ${rank}`, bytes), bytes };
    this.#arenas.set(rank, arena);
    return arena;
  }

  close(): void {
    for (const { descriptor } of this.#arenas.values()) closeDescriptor(descriptor);
    this.#arenas.clear();
  }
}
