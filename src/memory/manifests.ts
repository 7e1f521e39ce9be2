/** What the ranks' manifests say together. */
import { createHash } from "node:crypto";
import { u32s, u64s } from "../protocol/arrays.js";
import { ELEMENT_BYTES, isDtype } from "../protocol/dtypes.js";
import type { Failure, Manifest } from "../protocol/messages.js";

/** Equal exactly when two ranks train the same tensors in the same way. */
export function manifestSignature(manifest: Manifest): string {
  const { zeroStage, dtype, names, dtypes, shapes } = manifest;
  return createHash("sha256")
    .update(JSON.stringify([zeroStage, dtype, names, dtypes, shapes]))
    .digest("base64");
}

/** Elements of each tensor. */
export function manifestElements(manifest: Manifest): number[] {
  return manifest.shapes.map((shape) => shape.reduce((product, size) => product * size, 1));
}

/** As SCRATCH_BYTES of python/src/baton/weights/transfer.py. */
const SCRATCH_BYTES = 64 * 2 ** 20;

/** What a worker needs to put whole tensors together: so much at a time, and one at least (`Assembler` there). */
export function scratchBytes(manifest: Manifest): number {
  const sizes = manifestElements(manifest).map((elements, tensor) => elements * elementBytes(manifest, tensor));
  const all = sizes.reduce((sum, size) => sum + size, 0);
  return sizes.reduce((most, size) => Math.max(most, size), Math.min(SCRATCH_BYTES, all));
}

/** Bytes of an element of a tensor. */
export function elementBytes(manifest: Manifest, tensor: number): number {
  const dtype = manifest.dtypes[tensor] ?? "";
  return ELEMENT_BYTES[isDtype(dtype) ? dtype : manifest.dtype];
}

/**
 * Whether the pieces of the ranks are the whole model: under ZeRO-3 all together hold each element once, else
 * every rank does. Gives the first thing that is missing or double, or null.
 */
export function checkPieces(
  manifests: readonly { readonly rank: number; readonly manifest: Manifest }[],
): Failure | null {
  const first = manifests[0];
  if (first === undefined) return null;
  if (first.manifest.zeroStage === 3)
    return checkTiling(
      "all ranks together",
      manifests.map(({ manifest }) => manifest),
    );
  for (const { rank, manifest } of manifests) {
    const failure = checkTiling(`rank ${rank}`, [manifest]);
    if (failure) return failure;
  }
  return null;
}

function checkTiling(who: string, manifests: readonly Manifest[]): Failure | null {
  const elements = manifestElements(manifests[0] as Manifest);
  const pieces: { start: number; end: number }[][] = elements.map(() => []);
  for (const manifest of manifests) {
    const tensors = u32s(manifest.pieceTensor, "pieceTensor");
    const starts = u64s(manifest.pieceStart, "pieceStart");
    const counts = u64s(manifest.pieceElements, "pieceElements");
    const offsets = u64s(manifest.pieceOffset, "pieceOffset");
    if (starts.length !== tensors.length || counts.length !== tensors.length || offsets.length !== tensors.length) {
      return broken(who, `${tensors.length} of each array`, `${starts.length}, ${counts.length}, ${offsets.length}`);
    }
    for (const [piece, tensor] of tensors.entries()) {
      const start = Number(starts[piece]);
      const of = pieces[tensor];
      if (of === undefined) return broken(who, `tensors below ${elements.length}`, `a piece of tensor ${tensor}`);
      if (counts[piece] !== 0n) of.push({ start, end: start + Number(counts[piece]) });
    }
  }
  for (const [tensor, of] of pieces.entries()) {
    let end = 0;
    for (const piece of of.sort((a, b) => a.start - b.start)) {
      if (piece.start !== end) break;
      end = piece.end;
    }
    const covered = of.reduce((sum, piece) => sum + piece.end - piece.start, 0);
    if (end === elements[tensor] && covered === end) continue;
    const name = manifests[0]?.names[tensor] ?? `tensor ${tensor}`;
    return broken(
      who,
      `every element of ${name} once (${elements[tensor]} elements)`,
      `${covered}, without a gap up to ${end}`,
    );
  }
  return null;
}

function broken(who: string, expected: string, found: string): Failure {
  return {
    code: "MANIFEST_INCOMPLETE",
    message: `the pieces that ${who} declared are not the whole model`,
    expected,
    found,
    action: "Attach the engine that DeepSpeed made of the whole policy, on every rank.",
  };
}
