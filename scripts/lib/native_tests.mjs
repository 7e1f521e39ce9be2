/** The native tests: all under AddressSanitizer with UndefinedBehaviorSanitizer, those with threads under ThreadSanitizer. */
import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, join } from "node:path";
import { googletestVariables } from "./googletest.mjs";
import { buildNative } from "./native.mjs";
import { root, which } from "./tools.mjs";

const TEST_LIMIT_MS = 600_000;
const OUTPUT_LIMIT_BYTES = 64 * 2 ** 20;

/** A test that starts threads can race. */
const startsThreads = (file) => /std::(j?thread|async)\b|pthread_create/.test(readFileSync(file, "utf8"));

/** GCC's ThreadSanitizer cannot place its shadow memory when addresses are very random. */
const withoutRandomAddresses = () => {
  const setarch = which("setarch");
  const works = setarch !== null && spawnSync(setarch, ["-R", "true"]).status === 0;
  return works ? [setarch, "-R"] : [];
};

const variants = {
  address: {
    folder: "asan",
    wanted: () => true,
    prefix: () => [],
    environment: {
      ASAN_OPTIONS: "detect_leaks=1:halt_on_error=1:abort_on_error=0:handle_segv=0:allow_user_segv_handler=1",
      UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
    },
  },
  thread: {
    folder: "tsan",
    wanted: startsThreads,
    prefix: withoutRandomAddresses,
    environment: { TSAN_OPTIONS: "halt_on_error=1:second_deadlock_stack=1" },
  },
};

/**
 * Builds one variant, incrementally, and runs its tests, as many at once as there are cores.
 *
 * @param {"address" | "thread"} sanitizer
 * @param {string} [filter] only test files whose name contains it
 */
export async function runNativeTests(sanitizer, filter = "") {
  const { folder, wanted, prefix, environment } = variants[sanitizer];
  const names = readdirSync(join(root, "native", "test"))
    .filter((file) => file.endsWith("_test.cc") && file.includes(filter))
    .filter((file) => wanted(join(root, "native", "test", file)))
    .map((file) => basename(file, ".cc"));
  const result = { passed: 0, failed: 0, skipped: 0, failures: [] };
  if (names.length === 0) return result;

  const output = join(root, "build", folder);
  buildNative({
    tree: join(output, "cmake"),
    output,
    variables: { BATON_TESTS: "ON", BATON_ADDON: "OFF", BATON_SANITIZE: sanitizer, ...googletestVariables() },
    targets: names,
  });
  const waiting = [...names];
  const next = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      await runOne(name, { output, prefix: prefix(), environment, result });
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, next));
  return result;
}

async function runOne(name, { output, prefix, environment, result }) {
  const reports = join(output, "reports");
  const report = join(reports, `${name}.json`);
  mkdirSync(reports, { recursive: true });
  rmSync(report, { force: true });
  const [command, ...args] = [
    ...prefix,
    join(output, "tests", name),
    `--gtest_output=json:${report}`,
    "--gtest_brief=1",
  ];
  const run = await finished(command, args, { ...process.env, ...environment, BATON_BUILD_FOLDER: output });
  process.stdout.write(`-- ${name}\n${run.output}`);
  if (existsSync(report)) {
    const { tests, failures, disabled, errors, testsuites } = JSON.parse(readFileSync(report, "utf8"));
    const skipped = testsuites.flatMap((suite) => suite.testsuite).filter((test) => test.result === "SKIPPED").length;
    const failed = failures + errors;
    result.skipped += skipped + disabled;
    result.passed += tests - failed - skipped - disabled;
    result.failed += failed;
    if (failed > 0) result.failures.push(name);
    if (failed > 0 || run.status === 0) return;
  }
  // No report, or a bad end after a good one: a crash, a sanitizer's finding, a leak, or the time limit.
  result.failed += 1;
  result.failures.push(`${name} (${run.how})`);
}

/** Runs a test to its end; its output is shown then, in one piece. */
function finished(command, args, env) {
  const options = { cwd: root, env, timeout: TEST_LIMIT_MS, killSignal: "SIGKILL", maxBuffer: OUTPUT_LIMIT_BYTES };
  return new Promise((resolve) => {
    const child = execFile(command, args, options, (error, stdout, stderr) => {
      const how = child.signalCode ?? (child.exitCode === null ? error?.message : `exit code ${child.exitCode}`);
      resolve({ status: child.exitCode, how, output: stdout + stderr });
    });
  });
}
