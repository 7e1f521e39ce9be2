/**
 * The arenas: host memory that the ranks' paused pools live in. The controller makes and keeps them, so that one
 * outlives its rank; the ranks make them as large as they need.
 */
import { closeDescriptor, memfd } from "../native.js";

export class Arenas {
  readonly #descriptors = new Map<number, number>();

  /** The arena of a local rank: a memfd, empty when it is made. */
  of(rank: number): number {
    const known = this.#descriptors.get(rank);
    if (known !== undefined) return known;
    const descriptor = memfd(`baton arena ${rank}`, 0);
    this.#descriptors.set(rank, descriptor);
    return descriptor;
  }

  close(): void {
    for (const descriptor of this.#descriptors.values()) closeDescriptor(descriptor);
    this.#descriptors.clear();
  }
}
