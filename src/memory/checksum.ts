/**
 * The checksum of weights, over indices only. `h(i, v) = mix(v + 0x9E3779B97F4A7C15 * (i + 1))` modulo 2^64 with
 * splitmix64's finaliser as `mix`; the checksum of a tensor is the sum of h over its elements, so it does not
 * matter who holds which piece. With v = 0 it tells which elements are covered, and how often.
 *
 * 64-bit numbers are kept as two halves: BigInt is some thirty times slower here.
 */

const GOLDEN_HIGH = 0x9e3779b9;
const GOLDEN_LOW = 0x7f4a7c15;

/** High half of the 64-bit product of two u32; the low half is `Math.imul`. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const cross = aHigh * bLow + ((aLow * bLow) >>> 16);
  const middle = aLow * bHigh + (cross & 0xffff);
  return (aHigh * bHigh + Math.floor(cross / 65536) + Math.floor(middle / 65536)) >>> 0;
}

/** High half of (high, low) * (factorHigh, factorLow) modulo 2^64; the low half is `Math.imul(low, factorLow)`. */
function productHigh(high: number, low: number, factorHigh: number, factorLow: number): number {
  return (multiplyHigh(low >>> 0, factorLow) + Math.imul(low, factorHigh) + Math.imul(high, factorLow)) | 0;
}

/** Sums of h(i, 0) for i below a bound; what was summed for one bound is not summed again for a larger one. */
export class IndexChecksums {
  private readonly known = new Map<number, bigint>();
  private elements = 0;
  private sumHigh = 0;
  private sumLow = 0;

  /** The sum over indices 0 … elements - 1. */
  of(elements: number): bigint {
    const known = this.known.get(elements);
    if (known !== undefined) return known;
    if (elements < this.elements) return new IndexChecksums().of(elements);
    this.sumUpTo(elements);
    const sum = (BigInt(this.sumHigh) << 32n) | BigInt(this.sumLow);
    this.known.set(elements, sum);
    return sum;
  }

  /** Makes the sums for all of these counts in one pass. */
  prepare(counts: Iterable<number>): void {
    const missing = [...new Set(counts)].filter((count) => !this.known.has(count)).sort((a, b) => a - b);
    for (const count of missing) this.of(count);
  }

  private sumUpTo(elements: number): void {
    let { sumHigh, sumLow } = this;
    const first = BigInt.asUintN(64, BigInt(this.elements) * 0x9e3779b97f4a7c15n);
    let counterHigh = Number(first >> 32n);
    let counterLow = Number(first & 0xffffffffn);
    for (let i = this.elements; i < elements; i++) {
      counterLow += GOLDEN_LOW;
      counterHigh = (counterHigh + GOLDEN_HIGH + (counterLow > 0xffffffff ? 1 : 0)) >>> 0;
      counterLow >>>= 0;
      let high = counterHigh;
      let low = counterLow;
      // z ^= z >> 30, then z *= 0xBF58476D1CE4E5B9: low halves last, as the high ones need them.
      low ^= (low >>> 30) | (high << 2);
      high ^= high >>> 30;
      high = productHigh(high, low, 0xbf58476d, 0x1ce4e5b9);
      low = Math.imul(low, 0x1ce4e5b9);
      // z ^= z >> 27, then z *= 0x94D049BB133111EB
      low ^= (low >>> 27) | (high << 5);
      high ^= high >>> 27;
      high = productHigh(high, low, 0x94d049bb, 0x133111eb);
      low = Math.imul(low, 0x133111eb);
      // z ^= z >> 31
      low ^= (low >>> 31) | (high << 1);
      high ^= high >>> 31;
      sumLow += low >>> 0;
      sumHigh = (sumHigh + (high >>> 0) + (sumLow > 0xffffffff ? 1 : 0)) >>> 0;
      sumLow >>>= 0;
    }
    this.sumHigh = sumHigh;
    this.sumLow = sumLow;
    this.elements = elements;
  }
}
