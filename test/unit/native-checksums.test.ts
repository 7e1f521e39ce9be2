/** The checksum of weights over indices, as the addon computes it. */
import { describe, expect, it } from "vitest";
import { IndexSums } from "../../src/controller/index-sums.js";
import { indexChecksums } from "../../src/native.js";

const wrap = (value: bigint): bigint => BigInt.asUintN(64, value);

const wrap32 = (value: bigint): bigint => BigInt.asUintN(32, value);

/** The factor of a place as it is defined, in the plainest way; for tensors of less than 2^32 elements. */
function placeFactor(index: number): bigint {
  let x = BigInt(index);
  x = wrap32((x ^ (x >> 16n)) * 0x7feb352dn);
  x = wrap32((x ^ (x >> 15n)) * 0x846ca68bn);
  return (1n << 32n) + (x ^ (x >> 16n));
}

/** Sums for 0, 1, 2, … elements. */
const plain = [0n];
for (let elements = 1; elements <= 3_000; elements++) {
  plain.push(wrap((plain[elements - 1] as bigint) + placeFactor(elements - 1)));
}

describe("index checksums", () => {
  it("are the sums of the factors of every place, in whatever order they are asked for", async () => {
    const up = await indexChecksums(BigUint64Array.from(plain, (_, elements) => BigInt(elements)));
    expect([...up]).toEqual(plain);
    expect([...(await indexChecksums(BigUint64Array.from([2_000n, 3n, 0n, 700n, 3n])))]).toEqual(
      [2_000, 3, 0, 700, 3].map((elements) => plain[elements]),
    );
    expect([...(await indexChecksums(new BigUint64Array()))]).toEqual([]);
  });

  it("refuse anything but an array of counts", async () => {
    await expect(indexChecksums([1n] as unknown as BigUint64Array)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
  });

  it("are computed beside the event loop", async () => {
    let ticks = 0;
    const timer = setInterval(() => {
      ticks += 1;
    }, 1);
    await indexChecksums(BigUint64Array.from([100_000_000n]));
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(5);
  });

  it("of a run are known once they are prepared", async () => {
    const sums = new IndexSums();
    expect(() => sums.of(7)).toThrow(RangeError);
    await Promise.all([sums.prepare([7, 2_000, 7]), sums.prepare([700, 7])]);
    expect([7, 700, 2_000].map((elements) => sums.of(elements))).toEqual([plain[7], plain[700], plain[2_000]]);
  });
});
