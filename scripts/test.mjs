/**
 * `npm test`: all suites, each to its end, with a summary and a line `N passed, N failed` at the end.
 *
 *   npm test -- --all                                 every variant of the long tests too: hours on a small machine
 *   npm test -- --only address|thread|vitest|pytest   one suite (repeatable)
 *   npm test -- --only pytest -- ARGUMENTS            arguments for that suite
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { runNativeTests } from "./lib/native_tests.mjs";
import { developmentPython } from "./lib/python.mjs";
import { root, run, SetupError } from "./lib/tools.mjs";

const { values, positionals } = parseArgs({
  options: {
    all: { type: "boolean", default: process.env.BATON_ALL_TESTS === "1" },
    only: { type: "string", multiple: true, default: [] },
  },
  allowPositionals: true,
});
// Tests have deadlines of their own: this one ends a runner that hangs, on a slow machine too.
const SUITE_LIMIT_MS = (values.all ? 6 : 1) * 3_600_000;
/** Each takes 1 GB, and some of its tests start several processes. */
const PYTEST_WORKERS = 2;
if (values.all) process.env.BATON_ALL_TESTS = "1";
const reports = join(root, "build", "reports");
mkdirSync(reports, { recursive: true });

/** Runs a test runner to its end, however it ends; its report is read afterwards. */
function runner(command, args, options = {}) {
  const result = spawnSync(command, args, {
    cwd: root,
    stdio: "inherit",
    timeout: SUITE_LIMIT_MS,
    killSignal: "SIGKILL",
    ...options,
  });
  return result.signal ?? result.error?.message ?? result.status ?? "?";
}

/** A runner that ended badly although no test failed (or wrote no report) is a failure too. */
function withExit(result, exit) {
  if (exit === 0 || result.failed > 0) return result;
  return { ...result, failed: 1, failures: [`the runner ended with ${exit}`] };
}

/** The beginning of a message, on one line and without colours: the whole of it stands further up. */
function brief(message) {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colours begin with one
  const text = (message ?? "").replace(/\u001b\[[0-9;]*m/g, "").replace(/\s+/g, " ");
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

const none = { passed: 0, failed: 0, skipped: 0, failures: [] };

function vitest() {
  const report = join(reports, "vitest.json");
  rmSync(report, { force: true });
  const exit = runner("npx", [
    ...["vitest", "run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`],
    ...positionals,
  ]);
  if (!existsSync(report)) return withExit(none, exit === 0 ? "no report" : exit);
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, testResults } = JSON.parse(
    readFileSync(report, "utf8"),
  );
  // A file that does not even load has no tests in it.
  const broken = testResults.filter((file) => file.status === "failed");
  const failures = broken.flatMap((file) => {
    const name = file.name.replace(`${root}/`, "");
    const tests = file.assertionResults.filter(({ status }) => status === "failed");
    if (tests.length === 0) return [`${name}: ${brief(file.message)}`];
    return tests.map((one) => `${name}: ${one.fullName}: ${brief(one.failureMessages[0])}`);
  });
  const failed = Math.max(numFailedTests, failures.length);
  return withExit({ passed: numPassedTests, failed, skipped: numPendingTests + numTodoTests, failures }, exit);
}

function pytest() {
  const report = join(reports, "pytest.xml");
  rmSync(report, { force: true });
  const workers = Math.min(PYTEST_WORKERS, availableParallelism());
  // A file's tests stay together: many share the run of a job that its fixture starts.
  const parallel = ["-n", String(workers), "--dist", "loadfile"];
  const exit = runner(developmentPython(), ["-m", "pytest", `--junitxml=${report}`, ...parallel, ...positionals], {
    cwd: join(root, "python"),
  });
  const text = existsSync(report) ? readFileSync(report, "utf8") : "";
  const suite = /<testsuite [^>]*>/.exec(text)?.[0] ?? "";
  const count = (name) => Number(new RegExp(` ${name}="(\\d+)"`).exec(suite)?.[1] ?? 0);
  const failed = count("failures") + count("errors");
  const skipped = count("skipped");
  const failures = [...text.matchAll(/<testcase classname="([^"]*)" name="([^"]*)"[^>]*>\s*<(?:failure|error)/g)];
  return withExit(
    { passed: count("tests") - failed - skipped, failed, skipped, failures: failures.map((m) => `${m[1]}.${m[2]}`) },
    exit,
  );
}

const suites = {
  address: { title: "native, address and undefined sanitizer", run: () => runNativeTests("address", positionals[0]) },
  thread: { title: "native, thread sanitizer", run: () => runNativeTests("thread", positionals[0]) },
  vitest: { title: "TypeScript", run: vitest },
  pytest: { title: "Python", run: pytest },
};
for (const name of values.only) {
  if (!(name in suites)) {
    console.error(`--only ${name}: expected one of ${Object.keys(suites).join(", ")}`);
    process.exit(2);
  }
}

const rows = [];
const total = { passed: 0, failed: 0, skipped: 0 };
const wanted = values.only.length > 0 ? values.only : Object.keys(suites);

async function suite(title, work) {
  console.log(`\n== ${title}`);
  const started = performance.now();
  let result;
  try {
    result = await work();
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.error(`baton: ${error.message}`);
    result = { ...none, failed: 1, failures: ["it could not be run"] };
  }
  for (const key of Object.keys(total)) total[key] += result[key];
  rows.push({ title, seconds: (performance.now() - started) / 1000, ...result });
}

await suite("build", () => {
  run("npm", ["run", "--silent", "build"]);
  return none;
});
for (const name of wanted) await suite(suites[name].title, suites[name].run);

console.log("\n== summary");
for (const { title, seconds, passed, failed, skipped, failures } of rows) {
  const counts = `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
  console.log(`${title.padEnd(42)} ${counts.padEnd(36)} ${seconds.toFixed(1)} s`);
  for (const failure of failures) console.log(`    failed: ${failure}`);
}
console.log(`${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ""}`);
process.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
