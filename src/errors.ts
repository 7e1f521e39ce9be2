/** What went wrong, in the fields that a user reads and a program can test. */
export interface BatonErrorFields {
  /** Stable, upper case with underscores, for example `SOCKET_PATH_TOO_LONG`. */
  readonly code: string;
  /** One sentence. */
  readonly message: string;
  /** What had to hold. */
  readonly expected?: string;
  /** What was found instead. */
  readonly found?: string;
  /** What the user can do about it. */
  readonly action?: string;
}

/**
 * Every error that Baton throws on purpose, also from the native addon, which is given this class.
 *
 * `expected`, `found` and `action` are empty strings where they have nothing to say.
 */
export class BatonError extends Error {
  override readonly name: string = "BatonError";
  readonly code: string;
  readonly expected: string;
  readonly found: string;
  readonly action: string;

  constructor(fields: BatonErrorFields, options?: ErrorOptions) {
    super(fields.message, options);
    this.code = fields.code;
    this.expected = fields.expected ?? "";
    this.found = fields.found ?? "";
    this.action = fields.action ?? "";
  }

  /** The fields alone, as they travel in a `failure` message and in summary.json. */
  toFields(): Required<BatonErrorFields> {
    return {
      code: this.code,
      message: this.message,
      expected: this.expected,
      found: this.found,
      action: this.action,
    };
  }

  /** Several lines for a terminal; only the fields that say something. */
  describe(): string {
    const lines = [`${this.code}: ${this.message}`];
    if (this.expected) lines.push(`  expected: ${this.expected}`);
    if (this.found) lines.push(`  found:    ${this.found}`);
    if (this.action) lines.push(`  action:   ${this.action}`);
    return lines.join("\n");
  }

  toJSON(): Required<BatonErrorFields> {
    return this.toFields();
  }
}

/** Wraps whatever was thrown, so that every failure has a code. Baton's own errors are returned as they are. */
export function toBatonError(error: unknown, code = "INTERNAL"): BatonError {
  if (error instanceof BatonError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new BatonError({ code, message }, { cause: error });
}
