/** Index checksums of the sizes of tensors that a run meets, each computed once, off the event loop. */
import { indexChecksums } from "../native.js";

export class IndexSums {
  readonly #known = new Map<number, bigint>();
  /** One at a time: a later one finds what an earlier one has computed. */
  #last: Promise<void> = Promise.resolve();

  /** Computes what is not known yet, of tensors of these many elements. @throws BatonError of the addon */
  prepare(elements: readonly number[]): Promise<void> {
    const done = this.#last.then(async () => {
      const missing = [...new Set(elements)].filter((count) => !this.#known.has(count));
      if (missing.length === 0) return;
      const sums = await indexChecksums(BigUint64Array.from(missing, BigInt));
      missing.forEach((count, position) => {
        this.#known.set(count, sums[position] as bigint);
      });
    });
    this.#last = done.catch(() => {});
    return done;
  }

  /** @throws RangeError for a size that was not prepared */
  of(elements: number): bigint {
    const known = this.#known.get(elements);
    if (known === undefined) throw new RangeError(`no index checksum of ${elements} elements`);
    return known;
  }
}
