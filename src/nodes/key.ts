/** Both ends of a connection prove that they have the key of the run, without sending it. */
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { BatonError } from "../errors.js";

export function newNonce(): string {
  return randomBytes(32).toString("hex");
}

/** What `who` answers the challenge of the other side with; both nonces are in it, so no answer is of use twice. */
export function proofOf(
  who: "hub" | "member",
  key: string,
  hubNonce: string,
  memberNonce: string,
  node: number,
): string {
  return createHmac("sha256", key).update(`baton ${who} ${node} ${hubNonce} ${memberNonce}`).digest("hex");
}

export function isProof(given: string, expected: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}

/**
 * The key that all nodes of a run have; empty: none.
 *
 * @throws BatonError NODES_KEY_UNREADABLE
 */
export function readKey(keyFile: string | null, environment: Readonly<Record<string, string | undefined>>): string {
  if (keyFile === null) return environment.BATON_NODES_KEY ?? "";
  let found: string;
  try {
    const key = readFileSync(keyFile, "utf8").trim();
    if (key !== "") return key;
    found = "an empty file";
  } catch (error) {
    found = (error as NodeJS.ErrnoException).code ?? String(error);
  }
  throw new BatonError({
    code: "NODES_KEY_UNREADABLE",
    message: `The key of the nodes cannot be read from ${keyFile}.`,
    expected: "a file with a secret in it, the same on every node",
    found,
    action: "Make it (`openssl rand -hex 32 > FILE`), give it to every node, and name it in nodes.keyFile.",
  });
}
