/** What doctor says: one finding for each thing that it looked at. */
import type { Failure } from "../protocol/messages.js";

/**
 * `problem` would stop a run on this machine as it is, `warning` would make one slow or stops some kinds of it, `unknown`
 * could not be looked at.
 */
export type Verdict = "ok" | "warning" | "problem" | "unknown";

export const SUBJECTS = ["gpus", "links", "environment", "host", "versions", "compilers", "model"] as const;
export type Subject = (typeof SUBJECTS)[number];

/** A problem has the fields of the error that a run would end with. */
export interface Finding extends Failure {
  readonly subject: Subject;
  readonly verdict: Verdict;
}

type Texts = Omit<Failure, "code">;

/** Makes the findings of one subject. */
export const findingsOf = (subject: Subject) => ({
  ok: (code: string, message: string, found = ""): Finding => ({
    ...{ subject, verdict: "ok", code, message },
    ...{ expected: "", found, action: "" },
  }),
  warning: (code: string, texts: Texts): Finding => ({ subject, verdict: "warning", code, ...texts }),
  problem: (code: string, texts: Texts): Finding => ({ subject, verdict: "problem", code, ...texts }),
  unknown: (code: string, message: string, found: string, action = ""): Finding => ({
    ...{ subject, verdict: "unknown", code, message },
    ...{ expected: "", found, action },
  }),
});

/** Exit code: 1 when something would stop a run. */
export function exitCodeOf(findings: readonly Finding[]): number {
  return findings.some(({ verdict }) => verdict === "problem") ? 1 : 0;
}
