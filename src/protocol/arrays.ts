/** Integer and float arrays as they travel: little-endian binary, several numbers a field. */
import { endianness } from "node:os";
import { BatonError } from "../errors.js";

if (endianness() !== "LE") throw new Error("Baton runs on little-endian machines only");

type ArrayClass<T> = {
  readonly BYTES_PER_ELEMENT: number;
  new (buffer: ArrayBufferLike, byteOffset?: number, length?: number): T;
};

function checkWidth(binary: Uint8Array, width: number, field: string): void {
  if (binary.byteLength % width === 0) return;
  throw new BatonError({
    code: "PROTOCOL_ERROR",
    message: `field ${field} is not an array of ${width}-byte numbers`,
    expected: `a multiple of ${width} bytes`,
    found: `${binary.byteLength} bytes`,
    action: "Use the same version of Baton in every process of the run.",
  });
}

function view<T>(binary: Uint8Array, type: ArrayClass<T>, field: string): T {
  const width = type.BYTES_PER_ELEMENT;
  checkWidth(binary, width, field);
  const length = binary.byteLength / width;
  if (binary.byteOffset % width === 0) return new type(binary.buffer, binary.byteOffset, length);
  // A typed array must start at a multiple of its width; in a frame the bytes start anywhere.
  const copy = new Uint8Array(binary.byteLength);
  copy.set(binary);
  return new type(copy.buffer, 0, length);
}

/** Views or copies; treat the result as read-only. @throws BatonError PROTOCOL_ERROR for a broken length. */
export function u32s(binary: Uint8Array, field: string): Uint32Array {
  return view(binary, Uint32Array, field);
}

/** 4-byte numbers that are passed on as they are: nothing is copied. @throws BatonError PROTOCOL_ERROR as `u32s` */
export function words(binary: Uint8Array, field: string): Uint8Array {
  checkWidth(binary, 4, field);
  return binary;
}

/** As `u32s`, of 8-byte numbers. */
export function u64s(binary: Uint8Array, field: string): BigUint64Array {
  return view(binary, BigUint64Array, field);
}

/** The bytes of a typed array, without a copy. */
export function binaryOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
