/** Runs a module of the Python package that answers with one line of JSON. */
import { spawn } from "node:child_process";
import { delimiter } from "node:path";
import { z } from "zod";
import { onInterrupt } from "../controller/signals.js";
import { BatonError } from "../errors.js";
import { pythonPath } from "../native.js";

export interface ModuleCall {
  /** Absolute path of the interpreter. */
  readonly python: string;
  readonly module: string;
  readonly args: readonly string[];
  /** For its standard input, as JSON. */
  readonly input: unknown;
  readonly deadlineMs: number;
  /** Where the deadline comes from, and what to do when it was too short; by default that of a recipe. */
  readonly deadline?: { readonly option: string; readonly action: string };
  readonly environment: NodeJS.ProcessEnv;
  /** Gets what it warns of, a line each. */
  readonly say: (line: string) => void;
}

const START_DEADLINE = {
  option: "deadlines.startMs",
  action:
    "Raise deadlines.startMs if the data are large; a reward function's module may also hang when it is imported.",
};
/** Lines of the standard error that an error shows. */
const LAST_LINES = 12;
const TRACEBACK = "Traceback (most recent call last):";

const refusal = z.object({
  error: z.object({
    code: z.string(),
    message: z.string(),
    expected: z.string().optional(),
    found: z.string().optional(),
    action: z.string().optional(),
  }),
});

/**
 * What the module answers: the last line of its standard output.
 *
 * @throws BatonError what the module refuses with; PREFLIGHT_FAILED, PREFLIGHT_TIMEOUT, INTERRUPTED
 */
export async function callModule(call: ModuleCall): Promise<unknown> {
  const ended = await run(call);
  if (ended.because === "deadline") {
    const { option, action } = call.deadline ?? START_DEADLINE;
    throw new BatonError({
      code: "PREFLIGHT_TIMEOUT",
      message: `${call.module} did not end in time.`,
      expected: `an answer within ${Math.round(call.deadlineMs / 1000)} s (${option})`,
      found: ended.lastLines.at(-1) ?? "no word from it",
      action,
    });
  }
  if (ended.because !== null) {
    const message = `${call.module} was interrupted.`;
    throw new BatonError({ code: "INTERRUPTED", message, found: ended.because });
  }
  const answer = answerIn(ended.stdout);
  if (ended.code === 0 && answer !== undefined) return answer;
  const refused = refusal.safeParse(answer);
  if (ended.code === 1 && refused.success) {
    const { code, message, expected = "", found = "", action = "" } = refused.data.error;
    throw new BatonError({ code, message, expected, found, action });
  }
  throw new BatonError({
    code: "PREFLIGHT_FAILED",
    message: `${call.module} ended without an answer.`,
    expected: "exit code 0 and a line of JSON",
    found: [`exit ${ended.code ?? ended.signal}`, ...ended.lastLines].join("\n    "),
    action: "Read its last words above; with a complete Python (`baton setup`) this is a mistake of Baton's own.",
  });
}

/** Text that the module prints for people, such as help. */
export async function textOfModule(call: ModuleCall): Promise<string> {
  const { code, stdout, lastLines } = await run(call);
  if (code === 0) return stdout;
  throw new BatonError({
    code: "PREFLIGHT_FAILED",
    message: `${call.module} could not be asked.`,
    expected: "exit code 0",
    found: [`exit code ${code}`, ...lastLines].join("\n    "),
    action: "Run `baton setup`.",
  });
}

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly lastLines: readonly string[];
  /** Why it was killed: `deadline`, or the signal that this process got. */
  readonly because: string | null;
}

function run({ python, module, args, input, deadlineMs, environment, say }: ModuleCall): Promise<Ended> {
  const path = [pythonPath(), environment.PYTHONPATH].filter((part) => part !== undefined && part !== "");
  return new Promise((resolve, reject) => {
    const child = spawn(python, ["-m", module, ...args], {
      env: { ...environment, PYTHONPATH: path.join(delimiter) },
      stdio: ["pipe", "pipe", "pipe"],
      // A group of its own, so that what it has started is killed with it.
      detached: true,
    });
    let because: string | null = null;
    const killGroup = (): void => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // All of it has ended.
      }
    };
    const stop = (reason: string): void => {
      because = reason;
      killGroup();
    };
    const timer = setTimeout(() => stop("deadline"), deadlineMs);
    const interrupt = onInterrupt(stop);
    const done = (): void => {
      clearTimeout(timer);
      interrupt.remove();
    };
    let stdout = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    const words = new Words(say);
    child.stderr.setEncoding("utf8").on("data", (text: string) => words.add(text));
    // A module that ends without reading is not to end this process; its exit says enough.
    child.stdin.on("error", () => {});
    child.stdin.end(JSON.stringify(input));
    child.once("error", (error) => {
      done();
      reject(error);
    });
    // What it leaves behind would keep its pipes open, and perhaps a GPU busy.
    child.once("exit", killGroup);
    child.once("close", (code, signal) => {
      done();
      words.end(code === 0 || answerIn(stdout) !== undefined);
      resolve({ code, signal, stdout, lastLines: words.last, because });
    });
  });
}

/** The standard error: said as it comes, but for a traceback, which is told once, in the error. */
class Words {
  readonly #lines: string[] = [];
  readonly #held: string[] = [];
  #rest = "";
  constructor(readonly say: (line: string) => void) {}

  get last(): readonly string[] {
    return this.#lines.slice(-LAST_LINES);
  }

  add(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
  }

  /** @param understood whether the end needs no more words: then what was held back is only a warning */
  end(understood: boolean): void {
    if (this.#rest !== "") this.#line(this.#rest);
    if (understood) for (const line of this.#held) this.say(line);
  }

  #line(line: string): void {
    this.#lines.push(line);
    if (this.#held.length > 0 || line.startsWith(TRACEBACK)) this.#held.push(line);
    else this.say(line);
  }
}

/** Modules of the user that are imported may print before the answer. */
function answerIn(stdout: string): unknown {
  try {
    return JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "") as unknown;
  } catch {
    return undefined;
  }
}
