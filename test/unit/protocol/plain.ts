/** A message as plain JSON: binary as hexadecimal text, so that Buffers and arrays compare by content. */
export function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return { binary: Buffer.from(value).toString("hex") };
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
  }
  return value;
}

/** The inverse of `plain`. */
export function fromPlain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(fromPlain);
  if (typeof value !== "object" || value === null) return value;
  const { binary, ...rest } = value as { binary?: unknown };
  if (typeof binary === "string" && Object.keys(rest).length === 0) return new Uint8Array(Buffer.from(binary, "hex"));
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, fromPlain(inner)]));
}
